//! Owns: arrays of messages (revision 2025-03-26 alone).
//! Never: single messages (`session`).
//! Next: `modern`, the other era.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;

use super::answer::{JSON, error_answer, refuse, with};
use super::facts::Ends;
use super::outlet::Outlet;
use super::relay::collect;
use super::session::{Outcome, perform};
use super::{Ask, method_of, session_of};
use crate::error::{Error, Kind};
use crate::http::Connection;
use crate::jsonrpc::{self, Kind as MessageKind, Span};
use crate::limits;
use crate::mcp::method::Method;
use crate::rt;
use crate::world::World;

/// An array of messages (2025-03-26, Basic): the calls run side by side.
pub(super) async fn batch(
    world: &Rc<World>,
    connection: &mut Connection,
    ask: &Ask,
    body: &[u8],
    messages: Vec<Span>,
) -> io::Result<()> {
    let refused = |text: &'static str| Error::new(Kind::InvalidRequest).context(text);
    let record = match session_of(world, ask).await {
        Ok(record) if record.revision.batches() => record,
        Ok(_) => {
            let error = refused("batches exist in revision 2025-03-26 only");
            return refuse(connection, ask, &error, b"null").await;
        }
        Err(error) => return refuse(connection, ask, &error, b"null").await,
    };
    if messages.is_empty() || messages.len() > limits::BATCH_MAX {
        let error = refused("a batch has 1 to 100 messages");
        return refuse(connection, ask, &error, b"null").await;
    }
    // Its elements are accounted for one by one.
    ask.facts.is_array();
    let peer = connection.peer();
    let mut requests = 0;
    let (sender, mut answers) = rt::local::queue::<(bool, Vec<u8>)>(limits::BATCH_MAX);
    for span in messages {
        let element = span.of(body).to_vec();
        let ask = ask.again();
        ask.facts.expect_message();
        ask.facts.body(element.len());
        let envelope = match jsonrpc::scan(&element) {
            Ok(envelope) => envelope,
            Err(fault) => {
                requests += 1;
                let error = fault.into();
                ask.facts.failed(&error);
                account(world, &ask, peer, 0);
                let _ = sender.try_send((true, error_answer(&error, b"null")));
                continue;
            }
        };
        requests += usize::from(envelope.kind == MessageKind::Request);
        let method = method_of(&element, &envelope);
        ask.facts.message(world, method, &element, &envelope, ask.context.as_deref());
        ask.facts.session(&record);
        let (world, record, sender) = (world.clone(), record.clone(), sender.clone());
        rt::spawn("batch element", async move {
            let outcome = if envelope.kind == MessageKind::Request && method == Method::Initialize {
                let id = envelope.id.map_or(&b"null"[..], |id| id.of(&element));
                Outcome::Answer(error_answer(&refused("initialize stands alone"), id))
            } else {
                perform(&world, &ask, &record, element, envelope).await
            };
            let answer = match outcome {
                Outcome::Accepted => {
                    ask.facts.well();
                    None
                }
                Outcome::Answer(answer) => {
                    ask.facts.answered(&answer);
                    Some(answer)
                }
                Outcome::Refused { error, id } => {
                    ask.facts.failed(&error);
                    Some(error_answer(&error, &id))
                }
                Outcome::Relay(relay) => collect(&world, &ask, &record, relay, None, &sender).await,
                Outcome::Task(task) => {
                    let (relay, shape) = *task;
                    collect(&world, &ask, &record, relay, Some(shape), &sender).await
                }
            };
            account(&world, &ask, peer, answer.as_ref().map_or(0, Vec::len));
            if let Some(answer) = answer {
                drop(sender.send((true, answer)).await);
            }
        });
    }
    drop(sender);
    if requests == 0 {
        return connection.answer(202, &ask.cors, b"").await;
    }
    let mut held: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    while let Some((is_answer, message)) = answers.recv().await {
        bytes += message.len();
        held.push(message);
        if !is_answer || bytes > limits::BATCH_HELD_BYTES_MAX {
            let outlet = Outlet::new(world, &record, connection, ask);
            return Box::pin(stream_out(outlet, held, answers)).await;
        }
    }
    let mut array = Vec::with_capacity(bytes + held.len() + 1);
    let mut separator = b'[';
    for message in held {
        array.push(separator);
        array.extend_from_slice(&message);
        separator = b',';
    }
    array.push(b']');
    connection.answer_with(200, &with(JSON, &ask.cors), array).await
}

/// Something precedes an answer, or the answers are too large to be held together: all goes out as
/// events, each as it comes.
async fn stream_out(
    mut outlet: Outlet<'_>,
    held: Vec<Vec<u8>>,
    mut answers: rt::local::Receiver<(bool, Vec<u8>)>,
) -> io::Result<()> {
    for message in held {
        outlet.event(message).await;
    }
    loop {
        match outlet.attend(pin!(answers.recv())).await {
            Some(Some((_, message))) => outlet.event(message).await,
            Some(None) => return outlet.finish(None).await,
            None => return Ok(()),
        }
    }
}

/// Accounts for one message of an array.
fn account(world: &World, ask: &Ask, peer: SocketAddr, bytes_out: usize) {
    let principal = ask.principal.as_deref();
    ask.facts.account(world, &Ends { peer, principal, bytes_out: bytes_out as u64 });
}
