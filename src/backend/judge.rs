//! Owns: what an HTTP status and its body mean for a call: an answer, a lost session, a failure.
//! Never: I/O.
//! Next: `resume`, the rest of an answer.
//!
//! Streamable HTTP (2025-11-25), Session Management: 404 says that the session is gone. Servers
//! also say it with 400, and with texts of their own. An error that names the request is its answer,
//! and says so only with the codes -32000, -32001, -32600; nobody else's text is looked at.

use crate::error::Kind;
use crate::jsonrpc::{self, Kind as Message, walk};

use super::failure::Failure;
use super::names;

/// What a response with an unsuccessful status means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It carries the JSON-RPC error of this very request: pass it on.
    Answer,
    /// The backend does not know the session: the request was not executed.
    SessionLost,
    /// Anything else.
    Failed(Failure),
}

/// Judges a response with a status other than 2xx to the request of the raw id `asked`; `renewed`:
/// the session has been opened for it, and an error that names it is not about that.
pub(super) fn refusal(
    status: u16,
    body: &[u8],
    asked: &[u8],
    in_session: bool,
    renewed: bool,
) -> Verdict {
    let envelope = jsonrpc::scan(body).ok().filter(|e| e.kind == Message::ErrorResponse);
    let is_named = envelope.is_some_and(|envelope| {
        let id = names::answered_id(&envelope, body);
        id.is_some_and(|id| names::same(asked, id.of(body)))
    });
    let may_be_of_session =
        matches!(status, 400 | 404) && matches!(error_code(body), Some(-32000 | -32001 | -32600));
    if is_named && (renewed || !may_be_of_session) {
        return Verdict::Answer;
    }
    let text = match envelope.and_then(|envelope| envelope.error) {
        Some(error) => walk::member(error.of(body), "message")
            .and_then(|message| message.text(error.of(body)).map(|text| text.into_owned()))
            .unwrap_or_default(),
        None => String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned(),
    };
    if (status == 404 && in_session) || names_a_session(status, &text) {
        return Verdict::SessionLost;
    }
    if is_named {
        return Verdict::Answer;
    }
    Verdict::Failed(failed(status))
}

/// Whether a refusal of a request in a session says that there are none: the server is another than
/// before (2026-07-28, Versioning).
pub(super) fn is_of_another_era(body: &[u8]) -> bool {
    matches!(error_code(body), Some(-32020 | -32022))
}

/// The code of an error response.
pub(super) fn error_code(body: &[u8]) -> Option<i64> {
    let error = jsonrpc::scan(body).ok()?.error?.of(body);
    std::str::from_utf8(walk::member(error, "code")?.of(error)).ok()?.parse().ok()
}

/// Whether a refusal complains about the session rather than about the request.
fn names_a_session(status: u16, text: &str) -> bool {
    // Credentials and load have sessions of their own, and opening another would not help.
    if matches!(status, 401 | 403 | 407 | 429) || !(400..600).contains(&status) {
        return false;
    }
    let text = text.to_ascii_lowercase();
    let complains = [
        "not found",
        "no valid",
        "invalid",
        "missing",
        "unknown",
        "expired",
        "terminated",
        "not exist",
        "no such",
        "closed",
        "required",
        "ended",
        "no longer",
        "not initialized",
    ];
    text.contains("session") && complains.iter().any(|complaint| text.contains(complaint))
        || text.contains("server not initialized")
        || text.contains("initialization was complete")
}

/// The failure that a status means.
pub(super) fn failed(status: u16) -> Failure {
    let kind = match status {
        // Refused before it was executed.
        401 | 403 | 407 | 408 | 429 | 503 => Kind::Unavailable,
        502 | 504 => Kind::Lost,
        _ => Kind::BadAnswer,
    };
    let mut failure = Failure::new(kind, "").note(format!("HTTP {status}"));
    failure.status = status;
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(status: u16, body: &str, in_session: bool) -> bool {
        matches!(refusal(status, body.as_bytes(), b"7", in_session, false), Verdict::SessionLost)
    }

    #[test]
    fn lost_sessions_as_servers_really_report_them() {
        for (status, body) in [
            // The specification.
            (404, ""),
            (404, "Not Found"),
            // TypeScript SDK 1.x.
            (
                404,
                r#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}"#,
            ),
            (
                400,
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Mcp-Session-Id header is required"},"id":null}"#,
            ),
            (
                400,
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}"#,
            ),
            // server-everything.
            (
                400,
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: No valid session ID provided"},"id":3}"#,
            ),
            // Its older examples.
            (400, "Invalid or missing session ID"),
            // Python SDK.
            (
                400,
                r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Bad Request: No valid session ID provided"}}"#,
            ),
            (
                404,
                r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Not Found: Session has been terminated"}}"#,
            ),
            // Others.
            (
                503,
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Unknown session"},"id":null}"#,
            ),
            (
                500,
                r#"{"jsonrpc":"2.0","error":{"code":-32603,"message":"session expired"},"id":null}"#,
            ),
        ] {
            assert!(lost(status, body, true), "{status} {body}");
        }
    }

    #[test]
    fn other_refusals_are_no_lost_sessions() {
        for (status, body) in [
            (
                400,
                r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"Invalid Request"},"id":null}"#,
            ),
            (400, "Bad Request"),
            (401, "session expired"),
            (
                403,
                r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Session not found"},"id":7}"#,
            ),
            (429, "too many sessions: required to wait"),
            (500, "Internal Server Error"),
            (503, "upstream not found"),
            (302, "no session found"),
        ] {
            assert!(!lost(status, body, true), "{status} {body}");
        }
        assert!(!lost(404, "Not Found", false));
        assert!(lost(400, "Server not initialized", false));
    }

    #[test]
    fn codes_of_the_request_era_in_a_session_are_of_another_server() {
        let error = |code: i32| {
            format!(r#"{{"jsonrpc":"2.0","id":7,"error":{{"code":{code},"message":"m"}}}}"#)
        };
        for (code, wanted) in [(-32022, true), (-32020, true), (-32021, false), (-32602, false)] {
            assert_eq!(is_of_another_era(error(code).as_bytes()), wanted, "{code}");
        }
        assert!(!is_of_another_era(b"-32022"));
    }

    #[test]
    fn an_error_of_this_request_is_an_answer() {
        let body = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"bad","data":1}}"#;
        for status in [400, 404, 500, 401] {
            assert!(matches!(
                refusal(status, body.as_bytes(), b"7", false, false),
                Verdict::Answer
            ));
            for other in [&b"8"[..], b"\"7\""] {
                let verdict = refusal(status, body.as_bytes(), other, false, false);
                assert!(matches!(verdict, Verdict::Failed(_)), "{status} {verdict:?}");
            }
        }
    }

    /// A tool that speaks of sessions of its own was taken for a server that had lost ours: its call
    /// ran twice, and the error was lost.
    #[test]
    fn an_error_that_names_the_request_speaks_of_what_was_asked() {
        let of = |status, code: i32, text: &str, renewed| {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":7,"error":{{"code":{code},"message":"{text}"}}}}"#
            );
            refusal(status, body.as_bytes(), b"7", true, renewed)
        };
        for (status, code, text, is_lost) in [
            (400, -32603, "database session expired", false),
            (500, -32000, "session not found", false),
            (503, -32000, "Unknown session", false),
            (404, -32002, "Resource not found", false),
            (404, -32601, "Method not found: session", false),
            (400, -32602, "no such session", false),
            (400, -32000, "Bad Request: No valid session ID provided", true),
            (404, -32001, "Session not found", true),
            (404, -32600, "Not Found", true),
        ] {
            let verdict = of(status, code, text, false);
            assert_eq!(matches!(verdict, Verdict::SessionLost), is_lost, "{status} {code} {text}");
            assert_eq!(matches!(verdict, Verdict::Answer), !is_lost, "{status} {code} {text}");
            assert!(matches!(of(status, code, text, true), Verdict::Answer), "{code}");
        }
        assert!(matches!(refusal(404, b"", b"7", true, true), Verdict::SessionLost));
    }

    #[test]
    fn statuses() {
        for (status, kind) in [
            (401, Kind::Unavailable),
            (503, Kind::Unavailable),
            (500, Kind::BadAnswer),
            (502, Kind::Lost),
            (307, Kind::BadAnswer),
            (404, Kind::BadAnswer),
        ] {
            let error = failed(status).error("a");
            assert_eq!(error.kind(), kind);
            assert!(error.public().ends_with(&format!(": a: HTTP {status}")));
        }
    }
}
