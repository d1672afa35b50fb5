//! Owns: ids and tokens as they are held beyond the message that they stood in.
//! Never: what they mean, or whether two of them are the same one.
//! Next: `canon`.

use std::ops::Deref;

/// Raw JSON of an id or token: short ones, which is nearly all, without an allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw(Form);

const SHORT: usize = 22;

#[derive(Clone, PartialEq, Eq)]
enum Form {
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Raw {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Raw {
        if bytes.len() <= SHORT {
            let mut short = [0; SHORT];
            short[..bytes.len()].copy_from_slice(bytes);
            Raw(Form::Short(bytes.len() as u8, short))
        } else {
            Raw(Form::Long(bytes.into()))
        }
    }

    /// The digits of `number`.
    pub fn number(number: u64) -> Raw {
        Raw::new(itoa::Buffer::new().format(number).as_bytes())
    }
}

impl Deref for Raw {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Form::Short(length, short) => &short[..usize::from(*length)],
            Form::Long(long) => long,
        }
    }
}

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_ids_are_kept_whole() {
        for length in [0, 1, SHORT, SHORT + 1, 300] {
            let bytes = vec![b'7'; length];
            assert_eq!(&*Raw::new(&bytes), &bytes[..]);
        }
        assert_eq!(&*Raw::number(42), b"42");
    }
}
