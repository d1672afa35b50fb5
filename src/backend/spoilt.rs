//! Owns: what a line of a child that is no message seems to be the answer to.
//! Never: what is read on the way of a message that is one.
//! Next: `frame`, how a line is found.
//!
//! A server that answers a call with what is no JSON-RPC (an id twice, an error that is a text, bytes
//! that are no UTF-8) has answered it: its caller need not wait for the time limit to hear so.

/// The ids of a line that is written like a response, as they stand there; none if it is like
/// something else. Nothing else of it needs to be right.
pub(super) fn ids(line: &[u8]) -> Vec<&[u8]> {
    let mut ids = Vec::new();
    let mut is_response = false;
    let (mut at, mut depth) = (0, 0_usize);
    let line = line.trim_ascii();
    if line.first() != Some(&b'{') {
        return ids;
    }
    while let Some(byte) = line.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let end = end_of_text(line, at);
                let behind = line[end..].trim_ascii_start();
                if depth == 1
                    && let Some(value) = behind.strip_prefix(b":")
                {
                    match &line[at..end] {
                        b"\"id\"" => ids.push(scalar(value.trim_ascii_start())),
                        b"\"result\"" | b"\"error\"" => is_response = true,
                        b"\"method\"" => return Vec::new(),
                        _ => {}
                    }
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    if is_response { ids } else { Vec::new() }
}

/// Behind the quote that ends the text which begins at `start`.
fn end_of_text(line: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = line.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    line.len()
}

fn scalar(value: &[u8]) -> &[u8] {
    let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
    &value[..value.iter().position(ends).unwrap_or(value.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_like_a_response_names_ids() {
        let deep = [br#"{"id":4,"result":"#, &b"[".repeat(10_000)[..]].concat();
        for (line, found) in [
            (&br#"{"jsonrpc":"2.0","id":7,"id":8,"result":{}}"#[..], &["7", "8"][..]),
            (br#" {"id" : 7 ,"error":"no"}"#, &["7"]),
            (b"{\"result\":{\"id\":1,\"t\":\"\xff\\\"}\"},\"id\":\"7\"}\r", &["\"7\""]),
            (br#"{"result":{},"id":7"#, &["7"]),
            (br#"{"id":7,"result":"cut of"#, &["7"]),
            (br#"{"id":7,"result":"cut off\"#, &["7"]),
            (&deep, &["4"]),
            (br#"{"id":7,"method":"m","error":1}"#, &[]),
            (br#"{"id":7,"level":"info"}"#, &[]),
            (br#"{"a":{"id":7,"result":1}}"#, &[]),
            (br#"["id",7,"result"]"#, &[]),
            (br#"id:7 result"#, &[]),
            (b"", &[]),
        ] {
            let ids: Vec<_> = ids(line).into_iter().map(String::from_utf8_lossy).collect();
            assert_eq!(ids, found, "{}", String::from_utf8_lossy(line));
        }
    }
}
