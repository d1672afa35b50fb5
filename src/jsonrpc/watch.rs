//! Owns: the scan of a response that streams through: the same verdict, at any split.
//! Never: the bytes that passed; it keeps an id and the token that a split cuts.
//! Next: `walk`, for documents that are held whole.
//!
//! A fault shows after earlier bytes have left: whoever streams must then end the answer without
//! its proper end, so that the client cannot take the half for the whole.

use std::ops::Range;

use super::message::{Kind, ScanFault};
use super::nest::{Awaits, Nest};
use super::scan::{self, bits};
use super::{text, token};
use crate::limits::SCALAR_BYTES_MAX;

/// Resumable scanner of one response. Feed it every piece, then ask [`Watch::finish`].
///
/// For every message and every split of it: `finish` accepts it exactly if
/// [`scan`](super::scan::scan) accepts it as a response or an error response.
#[derive(Debug, Default)]
pub struct Watch {
    state: State,
    /// Bytes fed so far.
    fed: u64,
    nest: Nest,
    /// Members of the envelope met so far, as the bits of `scan`.
    seen: u32,
    /// The member of the envelope whose value stands here, 0 for others.
    member: u32,
    /// What must be looked at when it is whole: a number, a literal, an escape, a key.
    token: Vec<u8>,
    /// The raw id, and where it stands.
    id: Option<Vec<u8>>,
    id_at: Range<u64>,
    /// Start of a character that the last piece cut.
    cut: Vec<u8>,
    /// Other than zero if a string of this piece has a byte beyond ASCII.
    beyond: u32,
    fault: Option<ScanFault>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the opening brace.
    #[default]
    Start,
    /// Between two tokens, or in a string.
    Between(Awaits),
    /// Within an escape of a string, from its backslash on.
    Escape {
        key: bool,
    },
    Number,
    Literal,
    /// Behind the closing brace.
    End,
}

/// Kept of a key of the envelope: more than any of its names, in any case, can have.
const KEY_BYTES_MAX: usize = 32;

impl Watch {
    /// A scanner that has seen nothing.
    pub fn new() -> Watch {
        Watch::default()
    }

    /// Looks at the next piece.
    ///
    /// # Errors
    /// What makes the message unacceptable, as soon as it is seen; all later calls repeat it.
    pub fn feed(&mut self, piece: &[u8]) -> Result<(), ScanFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        self.beyond = 0;
        let mut verdict = self.bytes(piece);
        // As in `scan`: only what is beyond ASCII, or odd, is looked at twice.
        if self.beyond != 0 || !self.cut.is_empty() || verdict.is_err() {
            verdict = self.utf8(piece).and(verdict);
        }
        self.fed += piece.len() as u64;
        self.fault = verdict.err();
        verdict
    }

    /// The raw id, once it has been seen whole.
    pub fn id(&self) -> Option<&[u8]> {
        self.id.as_deref().filter(|_| self.id_at.end != 0)
    }

    /// Where the id stands, counted in bytes from the start of the message; as [`Watch::id`].
    pub fn id_at(&self) -> Option<Range<u64>> {
        self.id().map(|_| self.id_at.clone())
    }

    /// The verdict on the whole: the raw id (`None` where an error response has none) and whether
    /// it is an error response.
    ///
    /// # Errors
    /// The message is no response, or it is not whole.
    pub fn finish(self) -> Result<(Option<Vec<u8>>, bool), ScanFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if !self.cut.is_empty() {
            return Err(ScanFault::Utf8);
        }
        if self.state != State::End {
            return Err(ScanFault::Syntax);
        }
        match scan::judge(self.seen, self.id.as_deref())? {
            Kind::Response => Ok((self.id, false)),
            Kind::ErrorResponse => Ok((self.id, true)),
            Kind::Request | Kind::Notification => Err(ScanFault::Shape),
        }
    }

    /// Checks that all pieces together are UTF-8.
    fn utf8(&mut self, piece: &[u8]) -> Result<(), ScanFault> {
        let mut rest = piece;
        if !self.cut.is_empty() {
            // The first byte tells the length of the character; a wrong one fails the check.
            let length = match self.cut[0] {
                0xF0.. => 4,
                0xE0.. => 3,
                _ => 2,
            };
            let wanted = (length - self.cut.len()).min(rest.len());
            self.cut.extend_from_slice(&rest[..wanted]);
            rest = &rest[wanted..];
            if self.cut.len() < length {
                return Ok(());
            }
            std::str::from_utf8(&self.cut).map_err(|_| ScanFault::Utf8)?;
            self.cut.clear();
        }
        // A character that the end may cut begins at one of the last three bytes.
        let tail = rest.len().saturating_sub(3);
        let whole = match rest[tail..].iter().rposition(|&byte| byte >= 0xC0) {
            Some(lead) => {
                let at = tail + lead;
                match std::str::from_utf8(&rest[at..]) {
                    Err(cut) if cut.valid_up_to() == 0 && cut.error_len().is_none() => at,
                    _ => rest.len(),
                }
            }
            None => rest.len(),
        };
        self.cut.extend_from_slice(&rest[whole..]);
        simdutf8::basic::from_utf8(&rest[..whole]).map_err(|_| ScanFault::Utf8)?;
        Ok(())
    }

    fn bytes(&mut self, piece: &[u8]) -> Result<(), ScanFault> {
        let mut at = 0;
        while at < piece.len() {
            at = match self.state {
                State::Escape { key } => self.escape(piece, at, key)?,
                State::Number => self.number(piece, at)?,
                State::Literal => self.literal(piece, at)?,
                State::Between(awaits) if self.nest.depth() > 1 => self.below(piece, at, awaits)?,
                State::Between(Awaits::Text { key }) => self.text(piece, at, key)?,
                _ if token::is_space(piece[at]) => at + 1,
                State::Between(awaits) => self.structure(piece, at, awaits)?,
                State::Start if piece[at] == b'{' => {
                    self.open(true)?;
                    at + 1
                }
                // Half a document of another type is no JSON, a whole one is no message; nobody
                // who streams needs the difference.
                State::Start => return Err(ScanFault::Shape),
                State::End => return Err(ScanFault::Syntax),
            };
        }
        Ok(())
    }

    /// What stands below the envelope.
    fn below(&mut self, piece: &[u8], at: usize, mut awaits: Awaits) -> Result<usize, ScanFault> {
        let end = self.nest.walk(piece, at, &mut awaits, 1, &mut self.beyond)?;
        self.state = State::Between(awaits);
        match awaits {
            _ if end == piece.len() => Ok(end),
            // What the piece cuts is gathered.
            Awaits::Text { key } => {
                self.token.clear();
                self.state = State::Escape { key };
                Ok(end)
            }
            Awaits::Value | Awaits::FirstElement => self.begin(piece, end),
            _ => Ok(end),
        }
    }

    /// One byte of the envelope between tokens.
    fn structure(&mut self, piece: &[u8], at: usize, awaits: Awaits) -> Result<usize, ScanFault> {
        match (awaits, piece[at]) {
            (Awaits::FirstKey | Awaits::Key, b'"') => {
                self.token.clear();
                self.state = State::Between(Awaits::Text { key: true });
            }
            (Awaits::Value, _) => return self.begin(piece, at),
            (_, byte) => {
                let next = self.nest.step(awaits, byte)?;
                self.state = match self.nest.depth() {
                    0 => State::End,
                    _ => State::Between(next),
                };
            }
        }
        Ok(at + 1)
    }

    /// The first byte of a value.
    fn begin(&mut self, piece: &[u8], at: usize) -> Result<usize, ScanFault> {
        let byte = piece[at];
        if self.nest.depth() == 1 {
            let fits = match self.member {
                bits::JSONRPC => byte == b'"',
                bits::ERROR => byte == b'{',
                bits::ID => matches!(byte, b'"' | b'-' | b'0'..=b'9' | b'n'),
                _ => true,
            };
            if !fits {
                return Err(ScanFault::Shape);
            }
            if self.member == bits::ID {
                self.id = Some(Vec::new());
                self.id_at.start = self.fed + at as u64;
            }
        }
        self.token.clear();
        match byte {
            b'"' => {
                self.keep(b"\"")?;
                self.state = State::Between(Awaits::Text { key: false });
                return Ok(at + 1);
            }
            b'{' => self.open(true)?,
            b'[' => self.open(false)?,
            b'-' | b'0'..=b'9' => {
                self.state = State::Number;
                return Ok(at);
            }
            b't' | b'f' | b'n' => {
                self.state = State::Literal;
                return Ok(at);
            }
            _ => return Err(ScanFault::Syntax),
        }
        Ok(at + 1)
    }

    fn open(&mut self, object: bool) -> Result<(), ScanFault> {
        self.state = State::Between(self.nest.open(object)?);
        Ok(())
    }

    /// Keeps a part of a value that is looked at when it is whole.
    fn keep(&mut self, part: &[u8]) -> Result<(), ScanFault> {
        if self.nest.depth() != 1 {
            return Ok(());
        }
        let (kept, most, fault) = match (self.member, &mut self.id) {
            (bits::ID, Some(id)) => (id, SCALAR_BYTES_MAX, ScanFault::ScalarTooLong),
            (bits::JSONRPC, _) => (&mut self.token, KEY_BYTES_MAX, ScanFault::Shape),
            _ => return Ok(()),
        };
        if kept.len() + part.len() > most {
            return Err(fault);
        }
        kept.extend_from_slice(part);
        Ok(())
    }

    /// A value of the envelope, or anything below it, is whole; it ends before `end`.
    fn whole(&mut self, end: usize) -> Result<(), ScanFault> {
        self.state = State::Between(Awaits::Behind);
        if self.nest.depth() == 1 {
            match self.member {
                bits::ID => {
                    token::means_something(self.id.as_deref().unwrap_or_default())?;
                    self.id_at.end = self.fed + end as u64;
                }
                bits::JSONRPC if self.token != br#""2.0""# => return Err(ScanFault::Shape),
                _ => {}
            }
        }
        Ok(())
    }

    /// Of a string of the envelope, a run of plain characters, and what ends it.
    fn text(&mut self, piece: &[u8], at: usize, key: bool) -> Result<usize, ScanFault> {
        let end = text::plain_end(piece, at, &mut self.beyond);
        let run = &piece[at..end];
        if key {
            // A longer key is none of ours, so its rest does not matter.
            let room = KEY_BYTES_MAX.saturating_sub(self.token.len());
            self.token.extend_from_slice(&run[..run.len().min(room)]);
        } else {
            self.keep(run)?;
        }
        match piece.get(end) {
            None => return Ok(end),
            Some(b'"') if key => {
                self.envelope_key()?;
                self.state = State::Between(Awaits::Colon);
            }
            Some(b'"') => {
                self.keep(b"\"")?;
                self.whole(end + 1)?;
            }
            // Only strings whose token is not in use have escapes.
            Some(b'\\') if key => return Err(ScanFault::EscapedKey),
            Some(b'\\') if self.member == bits::JSONRPC => return Err(ScanFault::Shape),
            Some(b'\\') => {
                self.token.clear();
                self.state = State::Escape { key };
                return Ok(end);
            }
            Some(_) => return Err(ScanFault::Syntax),
        }
        Ok(end + 1)
    }

    fn envelope_key(&mut self) -> Result<(), ScanFault> {
        self.member = scan::envelope_key(&self.token)?;
        if self.seen & self.member != 0 {
            return Err(ScanFault::Duplicate);
        }
        self.seen |= self.member;
        match self.member {
            // Neither is part of a response.
            bits::METHOD | bits::PARAMS => Err(ScanFault::Shape),
            _ => Ok(()),
        }
    }

    fn escape(&mut self, piece: &[u8], at: usize, key: bool) -> Result<usize, ScanFault> {
        let before = self.token.len();
        let room = token::ESCAPE_BYTES_MAX - before;
        let more = &piece[at..];
        self.token.extend_from_slice(&more[..more.len().min(room)]);
        match token::escape_length(&self.token)? {
            Some(length) => {
                if !key {
                    let whole = std::mem::take(&mut self.token);
                    let kept = self.keep(&whole[..length]);
                    self.token = whole;
                    kept?;
                }
                self.token.clear();
                self.state = State::Between(Awaits::Text { key });
                Ok(at + length - before)
            }
            None => Ok(piece.len()),
        }
    }

    fn number(&mut self, piece: &[u8], at: usize) -> Result<usize, ScanFault> {
        let run = piece[at..].iter().position(|&byte| !token::of_number(byte));
        let end = run.map_or(piece.len(), |run| at + run);
        let text = &piece[at..end];
        self.keep(text)?;
        if run.is_some() && self.token.is_empty() {
            whole_number(text)?;
        } else {
            if self.token.len() + text.len() > SCALAR_BYTES_MAX {
                return Err(ScanFault::ScalarTooLong);
            }
            self.token.extend_from_slice(text);
            if run.is_none() {
                return Ok(end);
            }
            whole_number(&self.token)?;
        }
        self.whole(end)?;
        Ok(end)
    }

    fn literal(&mut self, piece: &[u8], at: usize) -> Result<usize, ScanFault> {
        self.token.push(piece[at]);
        self.keep(&piece[at..at + 1])?;
        match &self.token[..] {
            b"true" | b"false" | b"null" => self.whole(at + 1)?,
            part if token::LITERALS.iter().any(|whole| whole.starts_with(part)) => {}
            _ => return Err(ScanFault::Syntax),
        }
        Ok(at + 1)
    }
}

fn whole_number(text: &[u8]) -> Result<(), ScanFault> {
    if token::number_end(text, 0)? == text.len() { Ok(()) } else { Err(ScanFault::Syntax) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::scan;

    fn watch(pieces: &[&[u8]]) -> Result<(Option<Vec<u8>>, bool), ScanFault> {
        let mut watch = Watch::new();
        for piece in pieces {
            watch.feed(piece)?;
        }
        watch.finish()
    }

    /// What a watch must say, by the scan.
    fn law(message: &[u8]) -> Option<(Option<Vec<u8>>, bool)> {
        let found = scan(message).ok()?;
        let id = found.id.map(|id| id.of(message).to_vec());
        match found.kind {
            Kind::Response => Some((id, false)),
            Kind::ErrorResponse => Some((id, true)),
            _ => None,
        }
    }

    const MESSAGES: &[&str] = &[
        r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"a\n\ud83d\ude00é😀"}],"n":-1.5e10}}"#,
        r#" { "result" : [ true , false,null, {} , [ ] ] , "id" : "a\"\u00e9b" , "jsonrpc" : "2.0" } "#,
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no"}}"#,
        r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"no"},"other":"x","a-key-that-is-longer-than-all-of-ours":1}"#,
        r#"{"jsonrpc":"2.0","id":12345678901234567890,"result":1e308}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":1e309}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":"\ud83d"}"#,
        r#"{"jsonrpc":"2.0","id":1e309,"result":1}"#,
        r#"{"jsonrpc":"2.0","id":"\ud83d","result":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{"a\u00e9\n":1}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{"a":1}]"#,
        r#"{"jsonrpc":"2.0","id":1,"result":01}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":tru}"#,
        r#"{"jsonrpc":"2.0","id":nullnull,"result":1}"#,
        r#"{"jsonrpc":"2.0","id":true,"result":1}"#,
        r#"{"jsonrpc":"2\u002e0","id":1,"result":1}"#,
        r#"{"jsonrpc":"2.0","i\u0064":1,"result":1}"#,
        r#"{"jsonrpc":"2.0","ID":1,"result":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"id":1,"result":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"error":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":1,"params":{}}"#,
        r#"{"id":1,"result":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":1} x"#,
        r#"[{"jsonrpc":"2.0","id":1,"result":1}]"#,
        "",
        " ",
        "1",
        "{}",
        "{",
    ];

    #[test]
    fn agrees_with_the_scan_at_every_split() {
        let mut accepted = 0;
        for message in MESSAGES {
            let bytes = message.as_bytes();
            let expected = law(bytes);
            accepted += usize::from(expected.is_some());
            for first in 0..=bytes.len() {
                let pieces = [&bytes[..first], &bytes[first..]];
                assert_eq!(watch(&pieces).ok(), expected, "{message} at {first}");
            }
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(watch(&single).ok(), expected, "{message} byte by byte");
        }
        assert_eq!(accepted, 8);
    }

    #[test]
    fn agrees_with_the_scan_on_every_damaged_byte() {
        for message in MESSAGES {
            for at in 0..message.len() {
                for damage in [0xFFu8, 0x80, 0xC3, 0xF0, b'"', b'\\', b'{', b'}', b',', b'0', 0] {
                    let mut bytes = message.as_bytes().to_vec();
                    bytes[at] = damage;
                    let expected = law(&bytes);
                    assert_eq!(watch(&[&bytes]).ok(), expected, "{bytes:?}");
                    let pieces: Vec<&[u8]> = bytes.chunks(3).collect();
                    assert_eq!(watch(&pieces).ok(), expected, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn depth_is_the_scans() {
        for depth in [125, 126, 127, 128] {
            let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{value}}}"#);
            assert_eq!(watch(&[message.as_bytes()]).ok(), law(message.as_bytes()), "{depth}");
        }
    }

    #[test]
    fn the_id_is_known_as_soon_as_it_is_whole() {
        let mut watch = Watch::new();
        watch.feed(br#"{"jsonrpc":"2.0","id":1"#).unwrap();
        assert_eq!(watch.id(), None, "more digits may follow");
        watch.feed(b"2,").unwrap();
        assert_eq!(watch.id(), Some(&b"12"[..]));
        assert_eq!(watch.id_at(), Some(22..24));
        watch.feed(br#""error":{"#).unwrap();
        assert_eq!(watch.id(), Some(&b"12"[..]));
        assert_eq!(watch.finish(), Err(ScanFault::Syntax), "not whole");
    }

    #[test]
    fn a_fault_stays() {
        let mut watch = Watch::new();
        assert_eq!(watch.feed(b"{x"), Err(ScanFault::Syntax));
        assert_eq!(watch.feed(b"}"), Err(ScanFault::Syntax));
        assert_eq!(watch.finish(), Err(ScanFault::Syntax));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut watch = Watch::new();
        watch.feed(br#"{"jsonrpc":"2.0","id":""#).unwrap();
        let piece = [b'x'; 600];
        watch.feed(&piece).unwrap();
        assert_eq!(watch.feed(&piece), Err(ScanFault::ScalarTooLong));
        let mut watch = Watch::new();
        watch.feed(br#"{"jsonrpc":"2.0","result":0."#).unwrap();
        watch.feed(&[b'1'; 600]).unwrap();
        assert_eq!(watch.feed(&[b'1'; 600]), Err(ScanFault::ScalarTooLong));
    }
}
