//! Owns: calls of sessions at backends of the request era, and the rounds in which such a backend
//! gets the input that it asks for.
//! Never: how a question reaches its client (`asks`); the first request (`modern`).
//! Next: `parking`, the same the other way round.
//!
//! MCP 2026-07-28, Multi Round-Trip Requests: a result may be no end, but a map of questions. Here each
//! of them becomes a request for the client, all at once; with all answers the request is sent again
//! under another id. A question of that era has no answer but a result, so a client that answers
//! with an error has declined what a person was asked, and else ends the call.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use super::asks::{self, Back, Caller};
use super::attempt::Ended;
use super::entry::Entry;
use super::failure::Failure;
use super::{Backends, Call, Reply, Wire, http, modern};
use crate::error::Kind;
use crate::jsonrpc::{self, Kind as Message, Span, walk};
use crate::limits;
use crate::mcp::envelope::{self, rebuilt};
use crate::mcp::method::Method;
use crate::rt::local::{self, Receiver, Sender};

/// What stands for the answer of a client that has none to give, where a person was asked: no
/// choice was made (2026-07-28, Elicitation, Response Actions).
const DISMISSED: &[u8] = br#"{"action":"cancel"}"#;

/// The replies of a backend of the request era to a call of a session. All answers are whole.
pub(super) struct Crossed {
    backends: Rc<Backends>,
    entry: Rc<Entry>,
    /// As it was sent first, with the client's own id and token.
    call: Call,
    wire: Wire,
    rounds: u32,
    /// Questions that the client has not seen.
    unseen: VecDeque<Vec<u8>>,
    round: Option<Round>,
}

/// What a backend asked for at once.
struct Round {
    /// Raw, to be given back as it is.
    state: Option<Vec<u8>>,
    /// `None`: the backend only wants to be asked again.
    wanted: Option<Vec<Wanted>>,
    missing: usize,
    inbox: Receiver<(usize, Vec<u8>)>,
}

/// One piece of input.
struct Wanted {
    /// Raw, as the backend wrote it.
    key: Vec<u8>,
    method: String,
    /// The client's result.
    given: Option<Vec<u8>>,
}

/// Where the answer to one question goes.
pub(super) struct Slot {
    at: usize,
    out: Sender<(usize, Vec<u8>)>,
}

impl Slot {
    /// Takes what the client said. There is room for one answer to each question, and progress is
    /// nothing that such a backend could be told.
    pub(super) fn take(&self, message: Vec<u8>) {
        let _ = self.out.try_send((self.at, message));
    }
}

impl Crossed {
    /// `call` is what `wire` answers.
    pub(super) fn new(
        backends: &Rc<Backends>,
        entry: &Rc<Entry>,
        call: Call,
        wire: Wire,
    ) -> Crossed {
        Crossed {
            backends: backends.clone(),
            entry: entry.clone(),
            call,
            wire,
            rounds: 0,
            unseen: VecDeque::new(),
            round: None,
        }
    }

    /// What HTTP says beside the answer that came, if it is an error.
    pub(super) fn beside(&self) -> http::Beside {
        self.wire.beside()
    }

    /// See [`super::Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply, Ended> {
        loop {
            if let Some(question) = self.unseen.pop_front() {
                return Ok(Reply::Ask(question));
            }
            if let Some(round) = &mut self.round {
                while round.missing > 0 {
                    let heard = self.call.handle.watch(round.inbox.recv()).await?;
                    let lost = || Failure::new(Kind::Internal, "a question was lost");
                    let (at, message) = heard.ok_or_else(lost)?;
                    round.take(at, &message)?;
                }
                self.again().await?;
                continue;
            }
            let reply = match &mut self.wire {
                Wire::Http(http) => http.next().await?,
                Wire::Line(line) => line.next().await?,
                Wire::Crossed(_) | Wire::Aside(_) => {
                    return Err(Failure::new(Kind::Internal, "crossed twice").into());
                }
            };
            match reply {
                Reply::Answer(answer) => match wants_input(&answer) {
                    Some(result) => self.asked(result.of(&answer))?,
                    None => return Ok(Reply::Answer(answer)),
                },
                reply => return Ok(reply),
            }
        }
    }

    /// The backend wants input.
    fn asked(&mut self, result: &[u8]) -> Result<(), Failure> {
        self.rounds += 1;
        if self.rounds > limits::INPUT_ROUNDS_MAX {
            return Err(Failure::new(Kind::BadAnswer, "it does not stop to ask for input"));
        }
        let message = modern::scan(&self.call.body)?;
        let method = message.method_name(&self.call.body).unwrap_or_default();
        let method = Method::parse(method.as_bytes());
        if !matches!(method, Method::ToolsCall | Method::PromptsGet | Method::ResourcesRead) {
            return Err(Failure::new(Kind::BadAnswer, "it asks for input where it must not"));
        }
        let state = walk::member(result, "requestState").map(|state| state.of(result).to_vec());
        let (out, inbox) = local::queue(limits::ASKS_PER_SESSION_MAX);
        let Some(requests) = walk::member(result, "inputRequests") else {
            if state.is_none() {
                return Err(Failure::new(Kind::BadAnswer, "it asks for input and names none"));
            }
            self.round = Some(Round { state, wanted: None, missing: 0, inbox });
            return Ok(());
        };
        let requests = requests.of(result);
        let members = walk::members_of_checked(requests)
            .ok_or_else(|| Failure::new(Kind::BadAnswer, "inputRequests is no object"))?;
        let mut wanted = Vec::new();
        for (key, request) in members {
            let slot = Slot { at: wanted.len(), out: out.clone() };
            let method = self.open(request.of(requests), slot)?;
            wanted.push(Wanted { key: key.of(requests).to_vec(), method, given: None });
        }
        self.round = Some(Round { state, missing: wanted.len(), wanted: Some(wanted), inbox });
        Ok(())
    }

    /// Makes a request for the client of one question; its method.
    fn open(&mut self, request: &[u8], slot: Slot) -> Result<String, Failure> {
        let handle = &self.call.handle;
        let client = self.call.session.as_ref().filter(|_| !handle.is_deaf());
        let client = client.ok_or_else(|| Failure::new(Kind::NeedsInput, ""))?;
        let bad = || Failure::new(Kind::BadAnswer, "an input request that is none");
        if !request.starts_with(b"{") {
            return Err(bad());
        }
        let framed: [(&str, &[u8]); 2] = [("jsonrpc", b"\"2.0\""), ("id", b"0")];
        let mut message = rebuilt(request, &["jsonrpc", "id"], &framed);
        let mut envelope = jsonrpc::scan(&message).map_err(|_| bad())?;
        let method = envelope.method_name(&message).unwrap_or_default().into_owned();
        if !matches!(&*method, ELICIT | "sampling/createMessage" | "roots/list") {
            return Err(bad());
        }
        if let Some(params) = envelope.params.filter(|_| method == ELICIT) {
            let number = self.backends.number();
            if let Some(named) = named(params.of(&message), number) {
                message = jsonrpc::splice(&message, &[(params, &named)]);
                envelope = modern::scan(&message)?;
            }
        }
        let opened = asks::open(
            &self.backends,
            &self.entry,
            client,
            Back::Round(slot),
            Some(Caller::over_http(handle)),
            &message,
            &envelope,
        );
        let opened = opened.map_err(|_| {
            // What a client cannot do, and that too much is asked, the backend was told before.
            Failure::new(Kind::NeedsInput, "").note(method.clone())
        })?;
        handle.hold_clock(Instant::now());
        self.unseen.push_back(opened.message);
        Ok(method)
    }

    /// Sends the request again, with what was asked for.
    async fn again(&mut self) -> Result<(), Ended> {
        let Some(round) = self.round.take() else { return Ok(()) };
        let body = round.request(&self.call.body)?;
        let call = Call {
            body,
            session: self.call.session.clone(),
            tool: None,
            modern: None,
            again: true,
            handle: self.call.handle.clone(),
            ..self.call
        };
        self.wire = Box::pin(modern::up(&self.backends, &self.entry, call, true)).await?;
        Ok(())
    }
}

impl Drop for Crossed {
    fn drop(&mut self) {
        if self.call.handle.is_asked() {
            asks::call_over(&self.backends, &self.call.handle);
        }
    }
}

const ELICIT: &str = "elicitation/create";

impl Round {
    /// The client answered one question.
    fn take(&mut self, at: usize, message: &[u8]) -> Result<(), Failure> {
        let Ok(envelope) = jsonrpc::scan(message) else { return Ok(()) };
        let wanted = self.wanted.as_mut().and_then(|wanted| wanted.get_mut(at));
        let Some(wanted) = wanted.filter(|wanted| wanted.given.is_none()) else { return Ok(()) };
        let given = match (envelope.kind, envelope.result) {
            (Message::Response, Some(result)) => result.of(message),
            (Message::ErrorResponse, _) if wanted.method == ELICIT => DISMISSED,
            (Message::ErrorResponse, _) => {
                let note = format!("{} was refused", wanted.method);
                return Err(Failure::new(Kind::NeedsInput, "").note(note));
            }
            // Progress.
            _ => return Ok(()),
        };
        wanted.given = Some(given.to_vec());
        self.missing -= 1;
        Ok(())
    }

    /// The request of the first round, as it is to be sent again.
    fn request(&self, first: &[u8]) -> Result<Vec<u8>, Failure> {
        const OF_A_ROUND: [&str; 2] = ["inputResponses", "requestState"];
        let envelope = modern::scan(first)?;
        let params = envelope.params.unwrap_or_default();
        let mut with: Vec<(&str, &[u8])> = Vec::new();
        let given = self.wanted.as_ref().map(|wanted| responses(wanted));
        with.extend(given.as_ref().map(|given| (OF_A_ROUND[0], given.as_slice())));
        with.extend(self.state.as_ref().map(|state| (OF_A_ROUND[1], state.as_slice())));
        let params_again = rebuilt(params.of(first), &OF_A_ROUND, &with);
        Ok(jsonrpc::splice(first, &[(params, &params_again)]))
    }
}

/// The answers under the keys of their questions.
fn responses(wanted: &[Wanted]) -> Vec<u8> {
    let mut out = vec![b'{'];
    for one in wanted {
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(&one.key);
        out.push(b':');
        out.extend_from_slice(one.given.as_deref().unwrap_or(b"null"));
    }
    out.push(b'}');
    out
}

/// The params of an elicitation by URL with the name that each has in the session era.
fn named(params: &[u8], number: u64) -> Option<Vec<u8>> {
    let mode = envelope::member(params, "mode")?;
    if mode.text(params)? != "url" || envelope::member(params, "elicitationId").is_some() {
        return None;
    }
    let name = format!("\"mcp-proxy-{number}\"");
    Some(rebuilt(params, &[], &[("elicitationId", name.as_bytes())]))
}

/// The result that is no end, but a question (2026-07-28, Multi Round-Trip Requests).
fn wants_input(answer: &[u8]) -> Option<Span> {
    // Spelt with escapes it would be no less.
    if memchr::memmem::find(answer, b"resultType").is_none() && !answer.contains(&b'\\') {
        return None;
    }
    let seen = jsonrpc::scan(answer).ok()?;
    (seen.result_type?.text(answer)? == "input_required").then_some(seen.result?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_told_from_answers() {
        let answer = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        let wants = |result: &str| wants_input(answer(result).as_bytes()).is_some();
        assert!(wants(r#"{"resultType":"input_required"}"#));
        assert!(wants(r#"{"result\u0054ype":"input\u005frequired"}"#));
        assert!(!wants(r#"{"resultType":"complete"}"#));
        assert!(!wants(r#"{"content":["input_required","resultType"]}"#));
        assert!(!wants("7"));
    }

    fn round(state: Option<&str>, wanted: &[(&str, &str)]) -> (Round, Sender<(usize, Vec<u8>)>) {
        let (out, inbox) = local::queue(4);
        let one = |(key, method): &(&str, &str)| Wanted {
            key: key.as_bytes().to_vec(),
            method: (*method).to_owned(),
            given: None,
        };
        let wanted: Vec<Wanted> = wanted.iter().map(one).collect();
        let missing = wanted.len();
        let state = state.map(|state| state.as_bytes().to_vec());
        (Round { state, wanted: (missing > 0).then_some(wanted), missing, inbox }, out)
    }

    #[test]
    fn answers_stand_under_the_keys_of_their_questions() {
        let keys = [(r#""\u0061""#, ELICIT), (r#""b""#, "roots/list"), (r#""c""#, ELICIT)];
        let (mut round, _out) = round(Some(r#""s\/1""#), &keys);
        for (at, message) in [
            (1, r#"{"jsonrpc":"2.0","id":0,"result":{"roots":[1.0]}}"#),
            (1, r#"{"jsonrpc":"2.0","id":0,"result":{"roots":["twice"]}}"#),
            (0, r#"{"jsonrpc":"2.0","id":0,"result":{"action":"decline"}}"#),
            (0, r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{}}"#),
            (2, r#"{"jsonrpc":"2.0","id":0,"error":{"code":-1,"message":"no"}}"#),
        ] {
            round.take(at, message.as_bytes()).unwrap();
        }
        assert_eq!(round.missing, 0);
        let first = r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"name":"\u0061","requestState":"old"}}"#;
        let again = String::from_utf8(round.request(first.as_bytes()).unwrap()).unwrap();
        let wanted = r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"inputResponses":{"\u0061":{"action":"decline"},"b":{"roots":[1.0]},"c":{"action":"cancel"}},"requestState":"s\/1","name":"\u0061"}}"#;
        assert_eq!(again, wanted);
    }

    #[test]
    fn what_only_a_program_was_asked_cannot_be_declined() {
        let (mut round, _out) = round(None, &[(r#""a""#, "sampling/createMessage")]);
        let error = br#"{"jsonrpc":"2.0","id":0,"error":{"code":-1,"message":"no"}}"#;
        let failure = round.take(0, error).unwrap_err();
        assert_eq!(
            (failure.kind, &*failure.note),
            (Kind::NeedsInput, "sampling/createMessage was refused")
        );
    }

    #[test]
    fn a_state_alone_is_given_back_alone() {
        let (round, _out) = round(Some("\"s\""), &[]);
        let again = round.request(br#"{"id":1,"jsonrpc":"2.0","method":"m","params":{}}"#).unwrap();
        assert!(again.ends_with(br#""params":{"requestState":"s"}}"#));
    }

    #[test]
    fn elicitations_by_url_get_a_name() {
        assert_eq!(named(br#"{"mode":"form"}"#, 1), None);
        assert_eq!(named(br#"{"mode":"url","elicitationId":"x"}"#, 1), None);
        let named = named(br#"{"mode":"url","x":1.0}"#, 7).unwrap();
        assert_eq!(named, br#"{"elicitationId":"mcp-proxy-7","mode":"url","x":1.0}"#);
    }
}
