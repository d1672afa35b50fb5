//! Owns: `max_argument_size` of `[security]`.
//! Never: the size of a whole body (`http`).
//! Next: `params`.
//!
//! ```toml
//! [security]
//! max_argument_size = 65536   # bytes of a tool call's arguments, as the client wrote them
//! ```

use super::{Request, Row};
use crate::error::{Error, Kind, Result};
use crate::mcp::catalog::ListKind;

/// Bytes that the arguments of a tool call may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeLimit(pub usize);

impl Row for SizeLimit {
    const CALLS: bool = true;

    fn request(&self, ask: &mut Request<'_>) -> Result<()> {
        let size = ask.arguments().map_or(0, <[u8]>::len);
        if ask.what == ListKind::Tools && size > self.0 {
            let text = format!("arguments of {size} bytes, accepted: {} at most", self.0);
            return Err(Error::new(Kind::InvalidParams).context(text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Case;
    use super::*;

    #[test]
    fn the_bound_is_met_exactly() {
        let arguments = r#"{"a":"0123"}"#;
        Case::tool("t", arguments).run(&SizeLimit(12)).unwrap();
        let error = Case::tool("t", arguments).run(&SizeLimit(11)).unwrap_err();
        let text = "Invalid params: arguments of 12 bytes, accepted: 11 at most";
        assert_eq!(error.public(), text);
        Case::bare_tool("t").run(&SizeLimit(0)).unwrap();
        Case::prompt("t", arguments).run(&SizeLimit(0)).unwrap();
    }
}
