//! Owns: requests of the proxy's own: handshake, ping, and whatever a supervisor asks.
//! Never: repeating them; their meaning beyond the handshake.
//! Next: `listing`, reading the lists.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{self, Ended};
use super::entry::Entry;
use super::failure::Failure;
use super::handle::{CallHandle, Item};
use super::http::{self, Request};
use super::leg::Leg;
use super::link::{Behind, Link, Outgoing, Route, Waiter};
use super::names::Own;
use super::{Backends, Call, Reply, era, modern};
use crate::error::{Error, Kind};
use crate::jsonrpc::{self, Kind as Message, Raw, walk};
use crate::limits;
use crate::mcp::catalog::Can;
use crate::mcp::revision::Revision;
use crate::mcp::session::{Authorization, SessionRecord};
use crate::plan::Plan;

/// The way to a backend.
#[derive(Clone)]
pub(super) enum Channel {
    Line(Rc<Link>),
    Leg(Rc<Leg>),
    /// A child of the request era.
    ModernLine(Rc<Link>),
    /// A server of the request era over HTTP: each request stands alone.
    Posts,
    /// The same, with what a client showed.
    PostsOf(Arc<Authorization>),
    /// As a call in a client's session, wherever its child or session is.
    Client(Arc<SessionRecord>),
}

/// What a backend answered.
#[derive(Debug)]
pub(super) enum Said {
    /// The raw result.
    Result(Vec<u8>),
    /// A JSON-RPC error.
    Error { code: i64, message: String },
}

impl Said {
    /// The result, where an error is a failure too.
    pub(super) fn result(self, method: &str) -> Result<Vec<u8>, Failure> {
        match self {
            Said::Result(result) => Ok(result),
            Said::Error { code, message } => {
                let message: String = message.chars().take(200).collect();
                let cause = format!("{method}: error {code}: {}", message.escape_debug());
                Err(Failure::new(Kind::Unavailable, cause))
            }
        }
    }
}

impl Channel {
    /// What the backend promised when the channel was opened.
    pub(super) fn can(&self) -> Can {
        match self {
            Channel::Line(link) => link.can.get(),
            Channel::Leg(leg) => leg.can,
            // Only its keeper knows, or there is nothing of the kind in its era.
            Channel::Client(_) | Channel::ModernLine(_) | Channel::Posts | Channel::PostsOf(_) => {
                Can::default()
            }
        }
    }

    /// Asks and waits for the answer, at most for `limit`.
    ///
    /// # Errors
    /// No answer; `session_lost` if the backend does not know the session any more.
    pub(super) async fn ask(
        &self,
        backends: &Rc<Backends>,
        entry: &Rc<Entry>,
        method: &str,
        params: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Said, Failure> {
        said(&self.answer(backends, entry, method, params, limit).await?)
    }

    /// Whether its requests are of the request era.
    pub(super) fn is_modern(&self) -> bool {
        matches!(self, Channel::ModernLine(_) | Channel::Posts | Channel::PostsOf(_))
    }

    /// As [`Channel::ask`], with the answer as it came.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn answer(
        &self,
        backends: &Rc<Backends>,
        entry: &Rc<Entry>,
        method: &str,
        params: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let wrapped = self.is_modern().then(|| era::own_params(&backends.plan.borrow(), params));
        let params = wrapped.as_deref().or(params);
        let now = Instant::now();
        let handle = Rc::new(CallHandle::deaf());
        let number = backends.number();
        let asked = Raw::number(number);
        let mut body = Vec::with_capacity(128);
        jsonrpc::request(&mut body, &asked, method, params);
        if let Channel::Client(session) = self {
            // In a box without its type: a session's child is started with requests of ours.
            let answer: Pin<Box<dyn Future<Output = Result<Vec<u8>, Failure>> + '_>> =
                Box::pin(as_client(backends, entry, session, body, handle, limit));
            return answer.await;
        }
        let _deadline = backends.clock.arm(&handle, now, limit);
        let answer = match self {
            Channel::Client(_) => Err(Failure::new(Kind::Internal, "asked above").into()),
            Channel::Leg(leg) => {
                if let Some(authorization) = leg.authorization() {
                    handle.forward(authorization);
                }
                let request = Request {
                    body: &body,
                    rename: None,
                    asked,
                    whole: true,
                    caller: None,
                    renewed: false,
                };
                over_http(backends, entry, leg, &request, &handle).await
            }
            Channel::Posts | Channel::PostsOf(_) => {
                if let Channel::PostsOf(authorization) = self {
                    handle.forward(authorization.clone());
                }
                let leg = Rc::new(Leg::modern(entry.http().0, &modern::lines(method, None)));
                let request = Request {
                    body: &body,
                    rename: None,
                    asked,
                    whole: true,
                    caller: None,
                    renewed: false,
                };
                over_http(backends, entry, &leg, &request, &handle).await
            }
            Channel::Line(link) | Channel::ModernLine(link) => {
                let own = Own { id: asked, token: None };
                let waiter = Waiter::new(Route::Here(handle.clone()), own, Behind::Proxy);
                link.send(number, waiter, &Outgoing::Ready(&body), now)?;
                loop {
                    match handle.arrived().await {
                        Ok(Item::Answer(answer)) => break Ok(answer),
                        Ok(Item::Notification(_) | Item::Ask(_) | Item::Settled) => {}
                        Ok(Item::Failed(failure)) => break Err(failure.into()),
                        Err(stop) => {
                            link.forget(number);
                            break Err(stop.into());
                        }
                    }
                }
            }
        };
        answer.map_err(|ended| failure(ended, method, limit))
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// Over HTTP, it was not accepted.
    pub(super) async fn tell(
        &self,
        backends: &Rc<Backends>,
        entry: &Rc<Entry>,
        method: &str,
    ) -> Result<(), Failure> {
        let mut body = Vec::with_capacity(64);
        jsonrpc::notification(&mut body, method, None);
        match self {
            Channel::Line(link) => {
                link.tell(&body);
                Ok(())
            }
            Channel::Leg(leg) => http::tell(backends, entry, leg, &body).await,
            // Nothing is told to servers of the request era.
            Channel::ModernLine(_) | Channel::Posts | Channel::PostsOf(_) => Ok(()),
            Channel::Client(_) => Ok(()),
        }
    }
}

/// A request of the proxy's own among those of a client.
async fn as_client(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    session: &Arc<SessionRecord>,
    body: Vec<u8>,
    handle: Rc<CallHandle>,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let id = jsonrpc::scan(&body).ok().and_then(|envelope| envelope.id);
    let call = Call {
        backend: entry.id,
        session: Some(session.clone()),
        tool_call: false,
        safe: true,
        body,
        id: id.unwrap_or_default(),
        progress_token: None,
        timeout: limit,
        tool: None,
        // Its id must be none that the client could use.
        again: true,
        modern: None,
        handle,
    };
    let failed = |error: Error| Failure::new(error.kind(), error.to_string());
    let mut attempt = attempt::call(backends, call).await.map_err(failed)?;
    loop {
        match attempt.next().await.map_err(failed)? {
            Reply::Answer(answer) => return Ok(answer),
            Reply::Notification(_) | Reply::Away { .. } => {}
            Reply::Ask(question) => backends.decline(&question),
            Reply::Streaming { .. } => break,
        }
    }
    let mut whole = Vec::new();
    while let Some(piece) = attempt.chunk().await.map_err(failed)? {
        whole.extend_from_slice(&piece);
        if whole.len() > limits::MESSAGE_BYTES_MAX {
            return Err(Failure::new(Kind::BadAnswer, "over the bound of one message"));
        }
    }
    Ok(whole)
}

/// Sends a request of the proxy's own and waits for its answer.
pub(super) async fn over_http(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    request: &Request<'_>,
    handle: &Rc<CallHandle>,
) -> Result<Vec<u8>, Ended> {
    let mut replies = attempt::sent(backends, entry, leg, request, handle, true).await?;
    answer(&mut replies).await
}

/// The answer; notifications before it are of no use here.
pub(super) async fn answer(replies: &mut http::HttpReplies) -> Result<Vec<u8>, Ended> {
    loop {
        match replies.next().await? {
            Reply::Answer(answer) => return Ok(answer),
            Reply::Notification(_) | Reply::Ask(_) | Reply::Away { .. } => {}
            Reply::Streaming { .. } => {
                return Err(Failure::new(Kind::BadAnswer, "not collected whole").into());
            }
        }
    }
}

pub(super) fn failure(ended: Ended, method: &str, limit: Duration) -> Failure {
    match ended {
        Ended::Failed(failure) => failure,
        Ended::Stopped(_) => {
            Failure::new(Kind::Timeout, format!("{method}: no answer within {limit:?}"))
        }
    }
}

/// Takes an answer apart.
pub(super) fn said(answer: &[u8]) -> Result<Said, Failure> {
    let bad = |cause: &'static str| Failure::new(Kind::BadAnswer, cause);
    let envelope = jsonrpc::scan(answer).map_err(|fault| bad(fault.text()))?;
    match (envelope.kind, envelope.result, envelope.error) {
        (Message::Response, Some(result), _) => Ok(Said::Result(result.of(answer).to_vec())),
        (Message::ErrorResponse, _, Some(error)) => {
            let error = error.of(answer);
            let code = walk::member(error, "code")
                .and_then(|code| std::str::from_utf8(code.of(error)).ok()?.parse().ok());
            let message = walk::member(error, "message")
                .and_then(|message| Some(message.text(error)?.into_owned()));
            Ok(Said::Error { code: code.unwrap_or(0), message: message.unwrap_or_default() })
        }
        _ => Err(bad("not an answer")),
    }
}

/// The answer to a request that needs not be made, with some id.
pub(super) fn nothing() -> Vec<u8> {
    let mut answer = Vec::new();
    jsonrpc::result(&mut answer, b"0", b"{}");
    answer
}

/// The parameters of `initialize`: with the capabilities of the client whose session it is, as it
/// sent them; in a session without a client there are none, and requests of servers are refused.
pub(super) fn hello(plan: &Plan, session: Option<&SessionRecord>) -> Vec<u8> {
    let revision = session.map_or(Revision::NEWEST, |session| session.revision);
    let capabilities = session.map(|session| session.capabilities.as_bytes());
    let capabilities = capabilities.filter(|text| text.first() == Some(&b'{')).unwrap_or(b"{}");
    let mut out = Vec::with_capacity(192 + capabilities.len());
    out.extend_from_slice(br#"{"protocolVersion":"#);
    jsonrpc::quote(revision.as_str(), &mut out);
    out.extend_from_slice(br#","capabilities":"#);
    out.extend_from_slice(capabilities);
    out.extend_from_slice(br#","clientInfo":{"name":"#);
    jsonrpc::quote(&plan.name, &mut out);
    out.extend_from_slice(br#","version":"#);
    jsonrpc::quote(&plan.version, &mut out);
    out.extend_from_slice(b"}}");
    out
}

/// The handshake with a child: `initialize`, then `notifications/initialized` before all else.
/// The raw result of `initialize`.
pub(super) async fn greet(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    channel: &Channel,
    session: Option<&SessionRecord>,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let params = hello(&backends.plan.borrow(), session);
    let init = channel
        .ask(backends, entry, "initialize", Some(&params), limit)
        .await?
        .result("initialize")?;
    self::revision(&init)?;
    channel.tell(backends, entry, "notifications/initialized").await?;
    Ok(init)
}

/// The revision that a backend answered with. One that the proxy does not know is taken as it is:
/// most messages are passed on unread.
pub(super) fn revision(init: &[u8]) -> Result<String, Failure> {
    walk::member(init, "protocolVersion")
        .and_then(|version| version.text(init))
        .filter(|version| {
            (1..=64).contains(&version.len()) && version.bytes().all(|byte| byte.is_ascii_graphic())
        })
        .map(|version| version.into_owned())
        .ok_or_else(|| Failure::new(Kind::BadAnswer, "initialize: no protocolVersion"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let result = said(br#"{"jsonrpc":"2.0","id":1,"result":{"a":[1]}}"#).unwrap();
        assert!(matches!(result, Said::Result(result) if result == br#"{"a":[1]}"#));
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"n\u006f"}}"#;
        match said(error.as_bytes()).unwrap() {
            Said::Error { code, message } => assert_eq!((code, &*message), (-32601, "no")),
            other => panic!("{other:?}"),
        }
        assert!(said(br#"{"jsonrpc":"2.0","method":"ping"}"#).is_err());
    }

    #[test]
    fn a_revision_must_be_fit_for_a_header() {
        assert_eq!(revision(br#"{"protocolVersion":"2025-06-18"}"#).unwrap(), "2025-06-18");
        for bad in [
            &br#"{}"#[..],
            br#"{"protocolVersion":1}"#,
            br#"{"protocolVersion":""}"#,
            br#"{"protocolVersion":"a\r\nb: c"}"#,
        ] {
            assert!(revision(bad).is_err());
        }
    }
}
