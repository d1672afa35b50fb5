//! Owns: the walk over values and what they hold, token by token, from any place to any other.
//! Never: what a member means; half of a number, a literal or an escape.
//! Next: `scan`, which walks whole messages, as `watch` does piece by piece.

use super::message::ScanFault;
use super::text::{self, Reach};
use super::token;
use crate::limits::JSON_DEPTH_MAX;

/// Which containers are open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Nest {
    /// One bit for each, the innermost lowest: 1 = object.
    objects: u128,
    depth: usize,
}

/// What comes next in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaits {
    Value,
    /// Behind `[`: a value or `]`.
    FirstElement,
    /// Behind `{`: a key or `}`.
    FirstKey,
    /// Behind a comma in an object.
    Key,
    Colon,
    /// Behind a value: a comma, or the end of its container.
    Behind,
    /// More of a string: of a key, or of a value.
    Text {
        key: bool,
    },
}

impl Nest {
    /// A place within so many containers, of whatever type.
    pub(super) fn within(depth: usize) -> Nest {
        Nest { objects: 0, depth }
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// One more container; what it awaits.
    ///
    /// # Errors
    /// There are too many.
    #[inline]
    pub(super) fn open(&mut self, object: bool) -> Result<Awaits, ScanFault> {
        if self.depth + 1 >= JSON_DEPTH_MAX {
            return Err(ScanFault::Depth);
        }
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
        Ok(if object { Awaits::FirstKey } else { Awaits::FirstElement })
    }

    /// What follows a byte between tokens with which no token starts.
    ///
    /// # Errors
    /// It may not stand there.
    #[inline]
    pub(super) fn step(&mut self, awaits: Awaits, byte: u8) -> Result<Awaits, ScanFault> {
        let object = self.in_object();
        match (awaits, byte) {
            (Awaits::Behind, b',') if object => return Ok(Awaits::Key),
            (Awaits::Behind, b',') | (Awaits::Colon, b':') => return Ok(Awaits::Value),
            (Awaits::FirstKey, b'}') | (Awaits::FirstElement, b']') => {}
            (Awaits::Behind, b'}') if object => {}
            (Awaits::Behind, b']') if !object => {}
            _ => return Err(ScanFault::Syntax),
        }
        self.depth -= 1;
        self.objects >>= 1;
        Ok(Awaits::Behind)
    }

    /// Behind a value that ends at `end`: as a rule a comma follows at once.
    #[inline(always)]
    fn behind(&self, bytes: &[u8], end: usize) -> (usize, Awaits) {
        match bytes.get(end) {
            Some(b',') if self.in_object() => (end + 1, Awaits::Key),
            Some(b',') => (end + 1, Awaits::Value),
            _ => (end, Awaits::Behind),
        }
    }

    #[inline(always)]
    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// Steps over what stands from `at` on, until a value ends that is within `floor` containers, or
    /// the bytes end; says where, and what is awaited there.
    ///
    /// Before a number or a literal that the end cuts, or may cut, it stops, and at an escape.
    /// For `beyond` see [`text::plain_end`].
    ///
    /// # Errors
    /// See [`ScanFault`]; there is nothing to go on with.
    pub(super) fn walk(
        &mut self,
        bytes: &[u8],
        mut at: usize,
        awaits: &mut Awaits,
        floor: usize,
        beyond: &mut u32,
    ) -> Result<usize, ScanFault> {
        // Of its own, so that they stand in registers.
        let mut nest = *self;
        let mut now = *awaits;
        loop {
            if !matches!(now, Awaits::Text { .. }) {
                at = token::space_end(bytes, at);
            }
            let Some(&byte) = bytes.get(at) else { break };
            (at, now) = match (now, byte) {
                (Awaits::Key | Awaits::FirstKey, b'"') => {
                    match text::reach(bytes, at + 1, beyond)? {
                        Reach::Whole(end) if bytes.get(end) == Some(&b':') => {
                            (end + 1, Awaits::Value)
                        }
                        Reach::Whole(end) => (end, Awaits::Colon),
                        Reach::Cut(end) => {
                            (at, now) = (end, Awaits::Text { key: true });
                            break;
                        }
                    }
                }
                (Awaits::Value | Awaits::FirstElement, b'"') => {
                    match text::reach(bytes, at + 1, beyond)? {
                        Reach::Whole(end) => nest.behind(bytes, end),
                        Reach::Cut(end) => {
                            (at, now) = (end, Awaits::Text { key: false });
                            break;
                        }
                    }
                }
                (Awaits::Text { key }, _) => match text::reach(bytes, at, beyond)? {
                    Reach::Whole(end) => (end, if key { Awaits::Colon } else { Awaits::Behind }),
                    Reach::Cut(end) => {
                        at = end;
                        break;
                    }
                },
                (Awaits::Value | Awaits::FirstElement, b'-' | b'0'..=b'9') => {
                    let Some(end) = token::whole_number_end(bytes, at)? else { break };
                    nest.behind(bytes, end)
                }
                (Awaits::Value | Awaits::FirstElement, b'{' | b'[') => {
                    (at + 1, nest.open(byte == b'{')?)
                }
                (Awaits::Value | Awaits::FirstElement, b't' | b'f' | b'n') => {
                    let Some(end) = token::literal_end(bytes, at)? else { break };
                    nest.behind(bytes, end)
                }
                _ => (at + 1, nest.step(now, byte)?),
            };
            if nest.depth == floor && now == Awaits::Behind {
                break;
            }
        }
        (*self, *awaits) = (nest, now);
        Ok(at)
    }
}

const _: () = assert!(JSON_DEPTH_MAX <= 128, "one bit of a u128 for each container");
