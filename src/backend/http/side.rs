//! Owns: messages beside calls: notifications, responses, and other small exchanges.
//! Never: a call, or a stream.
//! Next: `judge`, what a status means.

use std::rc::Rc;
use std::time::Instant;

use super::connect;
use crate::backend::Backends;
use crate::backend::entry::Entry;
use crate::backend::failure::Failure;
use crate::backend::judge::{self, Verdict};
use crate::backend::leg::Leg;
use crate::error::Kind;
use crate::{limits, rt};

/// Sends what is not a request, in a task of its own.
pub(in crate::backend) fn send(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    body: Vec<u8>,
) {
    let (backends, entry, leg) = (backends.clone(), entry.clone(), leg.clone());
    rt::spawn("side message", async move {
        if let Err(failure) = tell(&backends, &entry, &leg, &body).await {
            tracing::debug!(backend = entry.name(), %failure, "side message not taken");
        }
    });
}

/// Sends a notification or a response; both may be sent twice.
///
/// # Errors
/// It was not accepted within [`SIDE_MESSAGE_TIMEOUT`](crate::limits::SIDE_MESSAGE_TIMEOUT).
pub(in crate::backend) async fn tell(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    leg: &Rc<Leg>,
    body: &[u8],
) -> Result<(), Failure> {
    let authorization = leg.authorization();
    let write = |out: &mut Vec<u8>| {
        leg.post(out, body.len(), authorization.as_ref().map(|shown| shown.0.as_str()));
        out.extend_from_slice(body);
    };
    let (status, body) = side(backends, entry, write).await?;
    if (200..300).contains(&status) {
        return Ok(());
    }
    let mut failure = judge::failed(status);
    let verdict = judge::refusal(status, &body, b"", leg.has_session(), false);
    failure.session_lost = matches!(verdict, Verdict::SessionLost);
    Err(failure)
}

/// One small exchange beside calls: status and body of the response.
pub(in crate::backend) async fn side(
    backends: &Rc<Backends>,
    entry: &Rc<Entry>,
    write: impl Fn(&mut Vec<u8>),
) -> Result<(u16, Vec<u8>), Failure> {
    let pool = &entry.http().1.pool;
    let exchange = async {
        let mut pooled = pool.take(Instant::now(), |connection| connection.is_quiet());
        loop {
            let reused = pooled.is_some();
            let mut connection = match pooled.take() {
                Some(connection) => connection,
                None => Box::pin(connect(backends, entry)).await?,
            };
            let mut bytes = connection.buffer();
            write(&mut bytes);
            let sent = connection.send(bytes).await;
            let head = match sent {
                Ok(()) => {
                    connection.head().await.map_err(|fault| (fault.answered, fault.to_string()))
                }
                Err(fault) => Err((false, fault.to_string())),
            };
            match head {
                Ok(head) => {
                    let status = head.status();
                    drop(head);
                    let body = match connection.whole(limits::WHOLE_BODY_BYTES_MAX).await {
                        Ok(body) => body,
                        Err(_) => return Ok((status, Vec::new())),
                    };
                    if connection.reusable() {
                        pool.put(connection, Instant::now());
                    }
                    return Ok((status, body));
                }
                Err((false, _)) if reused => {}
                Err((_, cause)) => return Err(Failure::new(Kind::Lost, cause)),
            }
        }
    };
    // The connection is closed with the exchange.
    match rt::time::timeout(limits::SIDE_MESSAGE_TIMEOUT, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::new(Kind::Timeout, "no answer to a side message")),
    }
}
