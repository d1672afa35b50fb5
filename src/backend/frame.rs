//! Owns: lines out of a stream of bytes.
//! Never: what is in them.
//! Next: `names`, what a call is called on it.

use memchr::memchr;

/// A line grew over its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// Cuts lines. Bytes are read straight behind [`Lines::buffer`]; what is cut is not copied.
pub struct Lines {
    bytes: Vec<u8>,
    /// Start of the line that is not yet whole.
    start: usize,
    /// Before this there is no line end from `start` on.
    searched: usize,
    max: usize,
}

impl Lines {
    /// Of lines of at most `max` bytes, without their end.
    pub fn new(max: usize) -> Lines {
        Lines { bytes: Vec::new(), start: 0, searched: 0, max }
    }

    /// The buffer to read more behind, to be given back with [`Lines::restore`].
    pub fn buffer(&mut self) -> Vec<u8> {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.searched -= self.start;
            self.start = 0;
        }
        std::mem::take(&mut self.bytes)
    }

    /// Gives the buffer back, longer than it was or not.
    pub fn restore(&mut self, bytes: Vec<u8>) {
        self.bytes = bytes;
    }

    /// The next whole line, without LF or CR LF; `None` when more bytes are needed. Empty lines are
    /// skipped.
    ///
    /// # Errors
    /// A line over its bound, whole or not: what follows can no longer be told apart.
    pub fn cut(&mut self) -> Result<Option<&[u8]>, TooLong> {
        loop {
            let Some(at) = memchr(b'\n', &self.bytes[self.searched..]) else {
                self.searched = self.bytes.len();
                if self.searched - self.start > self.max + 1 {
                    return Err(TooLong);
                }
                if self.start == self.bytes.len() {
                    self.bytes.clear();
                    (self.start, self.searched) = (0, 0);
                }
                return Ok(None);
            };
            let (start, mut end) = (self.start, self.searched + at);
            (self.start, self.searched) = (end + 1, end + 1);
            if end > start && self.bytes[end - 1] == b'\r' {
                end -= 1;
            }
            if end - start > self.max {
                return Err(TooLong);
            }
            if end > start {
                return Ok(Some(&self.bytes[start..end]));
            }
        }
    }

    /// Takes what is there as if it were a line, and forgets it.
    pub fn rest(&mut self) -> Vec<u8> {
        let rest = self.bytes.split_off(self.start);
        self.bytes.clear();
        (self.start, self.searched) = (0, 0);
        rest
    }

    /// Gives memory back after a long line.
    pub fn shrink(&mut self, keep: usize) {
        if self.bytes.is_empty() && self.bytes.capacity() > keep {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], sizes: impl Iterator<Item = usize>) -> Vec<Vec<u8>> {
        let mut lines = Lines::new(1000);
        let (mut found, mut input) = (Vec::new(), input);
        for size in sizes {
            let piece = &input[..size.min(input.len())];
            input = &input[piece.len()..];
            let mut buffer = lines.buffer();
            buffer.extend_from_slice(piece);
            lines.restore(buffer);
            while let Some(line) = lines.cut().unwrap() {
                found.push(line.to_vec());
            }
        }
        assert!(input.is_empty());
        found
    }

    #[test]
    fn any_split_gives_the_same_lines() {
        let text = b"a\nbc\r\n\n\r\n{\"x\":1}\nlast one\n";
        let whole = lines(text, std::iter::once(text.len()));
        assert_eq!(whole, [&b"a"[..], b"bc", b"{\"x\":1}", b"last one"]);
        for size in 1..text.len() {
            assert_eq!(lines(text, std::iter::repeat_n(size, text.len())), whole, "by {size}");
        }
        for first in 0..text.len() {
            assert_eq!(lines(text, [first, text.len()].into_iter()), whole, "at {first}");
        }
    }

    #[test]
    fn lines_are_bounded() {
        let mut lines = Lines::new(4);
        lines.restore(b"1234\r\n1234".to_vec());
        assert_eq!(lines.cut(), Ok(Some(&b"1234"[..])));
        assert_eq!(lines.cut(), Ok(None));
        let mut buffer = lines.buffer();
        assert_eq!(buffer, b"1234");
        buffer.extend_from_slice(b"56");
        lines.restore(buffer);
        assert_eq!(lines.cut(), Err(TooLong));
        lines.restore(b"12345\n".to_vec());
        assert_eq!(Lines { start: 0, searched: 0, ..lines }.cut(), Err(TooLong));
    }

    #[test]
    fn what_has_no_end_can_be_taken() {
        let mut lines = Lines::new(4);
        lines.restore(b"a\nbcd".to_vec());
        assert_eq!(lines.cut(), Ok(Some(&b"a"[..])));
        assert_eq!(lines.cut(), Ok(None));
        assert_eq!(lines.rest(), b"bcd");
        assert_eq!(lines.cut(), Ok(None));
    }
}
