//! Owns: the rows that stand around a call, compiled for one backend; what an outcome means to them.
//! Never: the calls themselves (`backend::around`).
//! Next: `rate`.
//!
//! ```toml
//! [backends.timeout]
//! seconds = 60                    # one attempt
//! total_seconds = 120             # all attempts of a call, pauses and queues too
//! tools = { "slow_report" = 600 } # one attempt of one tool
//! progress_resets = false         # whether progress starts the attempt's clock anew
//! ```

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use memchr::memmem::Finder;

use super::breaker::Breaker;
use super::concurrency::Concurrency;
use super::hedge::Hedge;
use super::outlier::Outlier;
use super::rate::RateLimit;
use super::retry::{Outcome, Retry};
use super::route::Route;
use crate::error::{Error, Kind};
use crate::jsonrpc::{self, walk};

/// What stands around a call, outermost first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Around {
    /// Who else may answer its calls.
    pub route: Option<Route>,
    /// All attempts together.
    pub total: Option<Duration>,
    /// Whether a failed attempt is made again.
    pub retry: Option<Retry>,
    /// Whether a slow attempt gets company.
    pub hedge: Option<Hedge>,
    /// Calls at once.
    pub concurrency: Option<Concurrency>,
    /// Attempts in a time.
    pub rate: Option<RateLimit>,
    /// One attempt of one tool.
    pub tool_timeouts: HashMap<String, Duration, ahash::RandomState>,
    /// A progress notification starts the attempt's clock anew.
    pub progress_resets: bool,
    /// A backend that fails often is left alone.
    pub breaker: Option<Breaker>,
    /// A backend that fails in a row is ejected.
    pub outlier: Option<Outlier>,
}

impl Around {
    /// Whether nothing stands around a call.
    pub fn is_empty(&self) -> bool {
        // Asked for every call: nothing is compared, only looked at.
        let Around {
            route,
            total,
            retry,
            hedge,
            concurrency,
            rate,
            tool_timeouts,
            progress_resets,
            breaker,
            outlier,
        } = self;
        route.is_none()
            && total.is_none()
            && retry.is_none()
            && hedge.is_none()
            && concurrency.is_none()
            && rate.is_none()
            && tool_timeouts.is_empty()
            && !progress_resets
            && breaker.is_none()
            && outlier.is_none()
    }
}

impl Around {
    /// Goes on with the state of the rows that the same backend had before, as far as they are the
    /// same: a breaker that is open stays so. Of a limit of calls at once the calls under way count
    /// in any case.
    pub fn go_on_with(&mut self, before: &Around) {
        fn go_on<T: Clone + PartialEq>(row: &mut Option<T>, before: &Option<T>) {
            if row == before {
                row.clone_from(before);
            }
        }
        go_on(&mut self.route, &before.route);
        go_on(&mut self.retry, &before.retry);
        go_on(&mut self.rate, &before.rate);
        go_on(&mut self.breaker, &before.breaker);
        if let (Some(row), Some(before)) = (&mut self.concurrency, &before.concurrency) {
            row.go_on_with(before);
        }
        if let (Some(row), Some(before)) = (&mut self.outlier, &before.outlier) {
            match row == before {
                true => row.clone_from(before),
                false => row.move_to(before.ward()),
            }
        }
    }
}

/// What an attempt's end says of the backend, and whether it may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Breaker and outlier detection count it: `Some(true)` as a failure, `Some(false)` as a
    /// success, `None` not at all.
    pub failed: Option<bool>,
    /// For retries.
    pub outcome: Outcome,
}

/// Codes of JSON-RPC errors by which a server says that it failed itself: internal error, and the
/// range of server errors but for those to which the protocol gives a meaning of the caller's side.
fn is_own_failure(code: i64) -> bool {
    code == -32603
        || (-32099..=-32000).contains(&code) && !matches!(code, -32002 | -32022..=-32020 | -32042)
}

impl Verdict {
    /// Of a whole answer that came with an HTTP status, 0 = with none. Of an error the status says
    /// more than its code where it says whether the request was executed.
    pub fn of_answer(answer: &[u8], status: u16) -> Verdict {
        match status {
            429 | 502..=504 => Verdict::of_status(status),
            _ => Verdict::of_code(answer),
        }
    }

    fn of_code(answer: &[u8]) -> Verdict {
        let good = Verdict { failed: Some(false), outcome: Outcome::Final };
        // A member of the envelope has no escapes in its name, so most answers end here.
        static MARK: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
        if MARK.find(answer).is_none() {
            return good;
        }
        let Ok(envelope) = jsonrpc::scan(answer) else { return good };
        let Some(error) = envelope.error.map(|span| span.of(answer)) else { return good };
        let code = walk::member(error, "code").and_then(|code| {
            std::str::from_utf8(code.of(error)).ok().and_then(|code| code.parse::<i64>().ok())
        });
        match code {
            Some(code) if is_own_failure(code) => {
                Verdict { failed: Some(true), outcome: Outcome::Reported }
            }
            _ => good,
        }
    }

    /// Of a refusal with an HTTP status.
    fn of_status(status: u16) -> Verdict {
        let (failed, outcome) = match status {
            429 => (None, Outcome::Unsent),
            503 => (Some(true), Outcome::Unsent),
            500 => (Some(true), Outcome::Reported),
            502 | 504 => (Some(true), Outcome::Unknown),
            501 | 505.. => (Some(true), Outcome::Final),
            _ => (None, Outcome::Final),
        };
        Verdict { failed, outcome }
    }

    /// Of an attempt without an answer.
    pub fn of_error(error: &Error) -> Verdict {
        let (failed, outcome) = match (error.kind(), error.http_status()) {
            (_, status @ 1..) => return Verdict::of_status(status),
            (Kind::Unavailable, 0) => (Some(true), Outcome::Unsent),
            (Kind::Lost | Kind::Timeout | Kind::BadAnswer, 0) => (Some(true), Outcome::Unknown),
            // Refused by the proxy itself, or given up by the caller.
            _ => (None, Outcome::Final),
        };
        Verdict { failed, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_answers() {
        for (code, failed) in [
            (-32603, true),
            (-32000, true),
            (-32001, true),
            (-32099, true),
            (-32002, false),
            (-32020, false),
            (-32021, false),
            (-32022, false),
            (-32042, false),
            (-32100, false),
            (-32602, false),
            (-32700, false),
            (1, false),
        ] {
            let answer =
                format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"message":"m","code":{code}}}}}"#);
            let verdict = Verdict::of_answer(answer.as_bytes(), 200);
            assert_eq!(verdict.failed, Some(failed), "{code}");
            assert_eq!(verdict.outcome == Outcome::Reported, failed, "{code}");
        }
        let answer =
            br#"{"jsonrpc":"2.0","id":1,"result":{"isError":true,"error":{"code":-32603}}}"#;
        assert_eq!(Verdict::of_answer(answer, 0).failed, Some(false));
    }

    /// With such an answer a tool ran once more that must not run twice; without one it did not.
    #[test]
    fn a_status_that_says_whether_it_ran_is_heard_beside_an_answer() {
        let answer = br#"{"jsonrpc":"2.0","id":1,"error":{"message":"m","code":-32603}}"#;
        for (status, failed, outcome) in [
            (502, Some(true), Outcome::Unknown),
            (504, Some(true), Outcome::Unknown),
            (503, Some(true), Outcome::Unsent),
            (429, None, Outcome::Unsent),
            (500, Some(true), Outcome::Reported),
            (400, Some(true), Outcome::Reported),
            (0, Some(true), Outcome::Reported),
        ] {
            let verdict = Verdict::of_answer(answer, status);
            assert_eq!(verdict, Verdict { failed, outcome }, "{status}");
        }
    }

    #[test]
    fn failures_without_an_answer() {
        let of = |kind, status| Verdict::of_error(&Error::new(kind).http(status));
        for (kind, status, failed, outcome) in [
            (Kind::Unavailable, 0, Some(true), Outcome::Unsent),
            (Kind::Unavailable, 503, Some(true), Outcome::Unsent),
            (Kind::Unavailable, 429, None, Outcome::Unsent),
            (Kind::Unavailable, 401, None, Outcome::Final),
            (Kind::BadAnswer, 500, Some(true), Outcome::Reported),
            (Kind::BadAnswer, 404, None, Outcome::Final),
            (Kind::BadAnswer, 501, Some(true), Outcome::Final),
            (Kind::BadAnswer, 0, Some(true), Outcome::Unknown),
            (Kind::Lost, 502, Some(true), Outcome::Unknown),
            (Kind::Lost, 0, Some(true), Outcome::Unknown),
            (Kind::Timeout, 0, Some(true), Outcome::Unknown),
            (Kind::Busy, 0, None, Outcome::Final),
            (Kind::Cancelled, 0, None, Outcome::Final),
        ] {
            assert_eq!(of(kind, status), Verdict { failed, outcome }, "{kind:?} {status}");
        }
    }
}
