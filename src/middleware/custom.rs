//! Owns: the middleware of a program that embeds the proxy: what it is shown, what it may say, and
//! that its second hook runs exactly once for each request whose first one let it pass.
//! Never: a place of its own in the configuration; waiting; the requests of the proxy's own tools.
//! Next: `alias`, the first row of the table in which it has its place.
//!
//! A program gives its type to [`Proxy::with_middleware`](crate::Proxy::with_middleware); `()`, the
//! default, is nothing and costs nothing. Each worker has a value of its own, so hooks have `&mut`
//! and no locks. Inside a hook all calls are static; the data plane, which is the same whatever the
//! type, reaches each hook through one virtual call, and only if there is one.
//!
//! What a hook sees of a request is what was allowed: authentication, roles, filters, the size of
//! the client's arguments and `param_overrides` are behind it. What the operator injects, what is
//! kept in a cache and what a mirror hears come after it, so that no answer that is kept is a way
//! around it, and what it puts into a request is part of that answer's key.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::Request;
use super::reuse::Held;
use crate::error::{Error, Kind, Result};
use crate::jsonrpc::{self, Envelope, Kind as MessageKind};
use crate::mcp::catalog::ListKind;

/// Middleware of a program that embeds the proxy.
///
/// The value that [`Proxy::with_middleware`](crate::Proxy::with_middleware) is given is cloned for
/// each worker, which has its own from then on; what shall be common to all is behind an `Arc`.
/// Hooks run on the workers: they must not block, sleep, or do I/O, for all other requests of that
/// worker wait meanwhile. A hook that panics costs its request (-32603) and nothing else.
///
/// ```
/// use mcp_proxy::middleware::custom::{Call, Middleware, Refusal, Verdict};
///
/// /// Nobody deletes anything on Fridays.
/// #[derive(Clone)]
/// struct Fridays {
///     is_friday: fn() -> bool,
/// }
///
/// impl Middleware for Fridays {
///     type Memory = ();
///
///     fn request(&mut self, call: &mut Call<'_>) -> Verdict<()> {
///         match call.own_name() {
///             "delete" if (self.is_friday)() => {
///                 Verdict::Refuse(Refusal::new(-32050, "not on Fridays"))
///             }
///             _ => Verdict::Pass(()),
///         }
///     }
/// }
/// ```
pub trait Middleware: Clone + Send + 'static {
    /// What the request hook hands to the response hook of the same request; `()` = nothing.
    type Memory: 'static;

    /// Whether there is anything to do at all; `false` = no hook is ever called. Default `true`.
    const ACTIVE: bool = true;

    /// Whether [`Middleware::response`] is called. It needs answers whole: they are held up to
    /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) and do not stream through; a longer
    /// one becomes an error. Default `false`.
    const RESPONSES: bool = false;

    /// Looks at a `tools/call`, `resources/read`, `prompts/get`, `tasks/result` or, in the request
    /// era, `tasks/get` of any backend, and says what becomes of it. What else is told of a task
    /// there could not be looked at: with middleware nobody listens for tasks.
    fn request(&mut self, call: &mut Call<'_>) -> Verdict<Self::Memory>;

    /// Hears how a request ended that was let pass, exactly once for each; may change the answer.
    /// Only if [`Middleware::RESPONSES`] says so. The default does nothing.
    fn response(&mut self, memory: Self::Memory, ending: Ending<'_>) {
        let _ = (memory, ending);
    }
}

impl Middleware for () {
    type Memory = ();
    const ACTIVE: bool = false;

    fn request(&mut self, _call: &mut Call<'_>) -> Verdict<()> {
        Verdict::Pass(())
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// `tools/call`
    Tool,
    /// `resources/read`
    Resource,
    /// `prompts/get`
    Prompt,
    /// `tasks/result` (2025-11-25): the answer to a tool call that became a task; or `tasks/get` of
    /// the tasks extension (2026-07-28), whose result is the state of the task, with that answer as
    /// its member `result` or `error` once there is one. The name is the task's id, and there are
    /// no arguments.
    TaskResult,
}

/// A request that is about to go to a backend.
#[derive(Debug)]
pub struct Call<'a> {
    pub(crate) target: Target,
    pub(crate) called: &'a str,
    pub(crate) own_name: &'a str,
    pub(crate) backend: &'a str,
    pub(crate) principal: Option<&'a str>,
    pub(crate) arguments: Option<&'a [u8]>,
    pub(crate) replaced: Option<Vec<u8>>,
}

impl Call<'_> {
    /// What is asked for.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The name as the client wrote it, prefix and all; of a resource its URI.
    pub fn called(&self) -> &str {
        self.called
    }

    /// The backend's own name, behind prefix and alias; of a resource its URI.
    pub fn own_name(&self) -> &str {
        self.own_name
    }

    /// The backend's name in the configuration.
    pub fn backend(&self) -> &str {
        self.backend
    }

    /// Who asks, as the token says; `None` without `[auth]`.
    pub fn principal(&self) -> Option<&str> {
        self.principal
    }

    /// The arguments, a JSON object as the client sent it; `None` = there are none, or null.
    pub fn arguments(&self) -> Option<&[u8]> {
        self.replaced.as_deref().or(self.arguments)
    }

    /// Sends these arguments in the place of the client's: a JSON object. The rules of the
    /// configuration that inject arguments still come behind it.
    ///
    /// # Errors
    /// It is none, or this kind of request has no arguments; the old ones stay.
    pub fn set_arguments(&mut self, arguments: &[u8]) -> std::result::Result<(), NotJson> {
        if !matches!(self.target, Target::Tool | Target::Prompt) {
            return Err(NotJson("only tools and prompts have arguments"));
        }
        check_object(arguments)?;
        self.replaced = Some(arguments.to_vec());
        Ok(())
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Verdict<T> {
    /// It goes on; the response hook is given this.
    Pass(T),
    /// Its caller gets this error now, and the backend hears nothing.
    Refuse(Refusal),
    /// Its caller gets this result now, a JSON object as the method has it, and the backend hears
    /// nothing. Anything else than an object becomes an internal error.
    Answer(Vec<u8>),
}

/// A JSON-RPC error for a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    code: i32,
    message: String,
    data: Option<Vec<u8>>,
}

impl Refusal {
    /// An error with this code and text. Codes of the proxy and of MCP are in
    /// [`Kind`]; -32050 to -32099 are free of both.
    pub fn new(code: i32, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into(), data: None }
    }

    /// With `data`: a JSON object.
    ///
    /// # Errors
    /// It is none.
    pub fn with_data(mut self, data: &[u8]) -> std::result::Result<Refusal, NotJson> {
        check_object(data)?;
        self.data = Some(data.to_vec());
        Ok(self)
    }

    fn write(&self, id: &[u8]) -> Vec<u8> {
        let mut answer = Vec::with_capacity(128);
        jsonrpc::error(&mut answer, id, self.code, &self.message, self.data.as_deref());
        answer
    }
}

/// How a request ended that was let pass.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ending<'a> {
    /// The backend answered, or a kept answer of it serves.
    Response(&'a mut Response),
    /// The proxy answers with an error of its own: the backend is away, too slow, over a limit.
    Failed {
        /// The JSON-RPC code.
        code: i32,
        /// The text that the caller reads.
        message: &'a str,
    },
    /// Nobody gets an answer: the caller cancelled the request or left.
    Left,
}

/// A whole answer to a request, result or error.
#[derive(Debug)]
pub struct Response {
    message: Vec<u8>,
    envelope: Envelope,
}

impl Response {
    /// The whole JSON-RPC message.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// The result; `None` = it is an error.
    pub fn result(&self) -> Option<&[u8]> {
        let span = self.envelope.result?;
        (self.envelope.kind == MessageKind::Response).then(|| span.of(&self.message))
    }

    /// The error object; `None` = it is a result.
    pub fn error(&self) -> Option<&[u8]> {
        self.envelope.error.map(|span| span.of(&self.message))
    }

    /// Puts this result, a JSON object, in the place of what there is.
    ///
    /// # Errors
    /// It is none; the answer stays.
    pub fn set_result(&mut self, result: &[u8]) -> std::result::Result<(), NotJson> {
        check_object(result)?;
        let mut message = Vec::with_capacity(result.len() + 64);
        jsonrpc::result(&mut message, self.id(), result);
        self.replace(message)
    }

    /// Puts this error in the place of what there is.
    pub fn set_error(&mut self, refusal: &Refusal) {
        // What a refusal has in it was looked at when it was made.
        let _ = self.replace(refusal.write(self.id()));
    }

    fn id(&self) -> &[u8] {
        self.envelope.id.map_or(b"null", |id| id.of(&self.message))
    }

    fn replace(&mut self, message: Vec<u8>) -> std::result::Result<(), NotJson> {
        let envelope = jsonrpc::scan(&message).map_err(|_| NotJson("too deep"))?;
        *self = Response { message, envelope };
        Ok(())
    }
}

/// Bytes that a hook gave are not what they have to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJson(&'static str);

impl fmt::Display for NotJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for NotJson {}

/// One object and nothing behind it: what is spliced into a message must not end what is around it.
fn check_object(text: &[u8]) -> std::result::Result<(), NotJson> {
    const NO: NotJson = NotJson("a JSON object is needed");
    let raw: &serde_json::value::RawValue = serde_json::from_slice(text).map_err(|_| NO)?;
    raw.get().starts_with('{').then_some(()).ok_or(NO)
}

// ---------------------------------------------------------------------------------------------
// How the data plane reaches a type that it does not know
// ---------------------------------------------------------------------------------------------

/// Makes the middleware of one worker, on its thread.
pub type Maker = Box<dyn FnOnce() -> Rc<dyn Hooks> + Send>;

/// What makes a worker's own copy of `middleware`; `None` = there is nothing to do.
pub fn maker<M: Middleware>(middleware: &M) -> Option<Maker> {
    if !M::ACTIVE {
        return None;
    }
    let own = middleware.clone();
    Some(Box::new(move || Rc::new(Station(Rc::new(RefCell::new(own))))))
}

/// A worker's middleware, whatever its type.
pub trait Hooks {
    /// Shows it a request.
    ///
    /// # Errors
    /// It panicked.
    fn request(&self, call: &mut Call<'_>) -> Result<Turn>;
}

/// What is to be done with a request.
pub enum Turn {
    /// It goes on; whoever holds this sees its end.
    Pass(Option<Watch>),
    /// This answer is for any id, and whether it is a refusal.
    Answer(Held, bool),
}

struct Station<M>(Rc<RefCell<M>>);

impl<M: Middleware> Hooks for Station<M> {
    fn request(&self, call: &mut Call<'_>) -> Result<Turn> {
        let verdict = guarded(|| self.0.borrow_mut().request(call))?;
        Ok(match verdict {
            Verdict::Pass(_) if !M::RESPONSES => Turn::Pass(None),
            Verdict::Pass(memory) => Turn::Pass(Some(Watch(Box::new(Waiting {
                of: self.0.clone(),
                memory: Some(memory),
            })))),
            Verdict::Refuse(refusal) => Turn::Answer(held(refusal.write(b"0"))?, true),
            Verdict::Answer(result) => {
                check_object(&result).map_err(|fault| {
                    tracing::error!(%fault, "a middleware's answer cannot be sent");
                    Error::new(Kind::Internal).cause(fault)
                })?;
                let mut answer = Vec::with_capacity(result.len() + 48);
                jsonrpc::result(&mut answer, b"0", &result);
                Turn::Answer(held(answer)?, false)
            }
        })
    }
}

/// An answer that is given under the id of whoever asks.
fn held(answer: Vec<u8>) -> Result<Held> {
    let id = jsonrpc::scan(&answer).ok().and_then(|envelope| envelope.id);
    let id = id.ok_or_else(|| Error::new(Kind::Internal).cause("a middleware's answer"))?;
    Ok(Held { answer: answer.into(), id })
}

/// Sees the end of one request. A drop is an end too: nobody gets an answer.
pub struct Watch(Box<dyn End>);

impl Watch {
    /// An answer came; the one to send.
    ///
    /// # Errors
    /// The hook panicked, or the answer is none.
    pub fn answered(mut self, message: Vec<u8>) -> Result<Vec<u8>> {
        let envelope =
            jsonrpc::scan(&message).map_err(|fault| Error::new(Kind::BadAnswer).cause(fault));
        let envelope = match envelope {
            Ok(envelope) => envelope,
            Err(error) => {
                self.failed(&error);
                return Err(error);
            }
        };
        let mut response = Response { message, envelope };
        self.0.end(Ending::Response(&mut response))?;
        Ok(response.message)
    }

    /// The proxy answers with this error.
    pub fn failed(mut self, error: &Error) {
        let _ = match error.kind() {
            Kind::Cancelled => self.0.end(Ending::Left),
            kind => self.0.end(Ending::Failed { code: kind.code(), message: &error.public() }),
        };
    }
}

trait End {
    /// Once; again it does nothing.
    fn end(&mut self, ending: Ending<'_>) -> Result<()>;
}

struct Waiting<M: Middleware> {
    of: Rc<RefCell<M>>,
    memory: Option<M::Memory>,
}

impl<M: Middleware> End for Waiting<M> {
    fn end(&mut self, ending: Ending<'_>) -> Result<()> {
        let Some(memory) = self.memory.take() else { return Ok(()) };
        guarded(|| self.of.borrow_mut().response(memory, ending))
    }
}

impl<M: Middleware> Drop for Waiting<M> {
    fn drop(&mut self) {
        let _ = self.end(Ending::Left);
    }
}

/// Runs a hook; a panic in it must cost one request, and its caller must hear of it.
fn guarded<T>(hook: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(hook)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("no text").to_owned();
        // A payload may panic when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(panic)));
        tracing::error!(panic = text, "a middleware panicked");
        Error::new(Kind::Internal).cause("a middleware panicked")
    })
}

/// The place in the table: shows a request to `hooks`. `false` = it is answered.
pub(super) fn request(hooks: &dyn Hooks, ask: &mut Request<'_>) -> Result<bool> {
    let target = match ask.what {
        ListKind::Tools => Target::Tool,
        ListKind::Prompts => Target::Prompt,
        ListKind::Resources | ListKind::Templates => Target::Resource,
    };
    let mut call = Call {
        target,
        called: ask.called,
        own_name: &ask.own,
        backend: ask.backend,
        principal: ask.principal,
        arguments: match target {
            Target::Tool | Target::Prompt => ask.arguments(),
            _ => None,
        },
        replaced: None,
    };
    let turn = hooks.request(&mut call)?;
    let replaced = call.replaced;
    match turn {
        Turn::Pass(watch) => {
            // Before anything that can fail: it hears of that too.
            ask.watch = watch;
            if let Some(arguments) = replaced {
                ask.set_arguments(&arguments)?;
            }
            Ok(true)
        }
        Turn::Answer(held, refused) => {
            ask.held = Some(held);
            ask.decided = Some(refused);
            Ok(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it hears.
    #[derive(Clone, Default)]
    struct Diary(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

    impl Diary {
        fn note(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl Middleware for Diary {
        type Memory = u8;
        const RESPONSES: bool = true;

        fn request(&mut self, call: &mut Call<'_>) -> Verdict<u8> {
            match call.own_name() {
                "panics" => panic!("expected by this test"),
                "refused" => Verdict::Refuse(Refusal::new(-32050, "no")),
                _ => Verdict::Pass(7),
            }
        }

        fn response(&mut self, memory: u8, ending: Ending<'_>) {
            match ending {
                Ending::Response(response) if response.message().ends_with(b"\"panic\"}}") => {
                    panic!("expected by this test")
                }
                Ending::Response(response) => {
                    self.note(&format!("{memory} {}", response.result().is_some()));
                    response.set_error(&Refusal::new(1, "changed"));
                }
                Ending::Failed { code, message } => self.note(&format!("{code} {message}")),
                _ => self.note("left"),
            }
        }
    }

    fn call(own_name: &str) -> Call<'_> {
        Call {
            target: Target::Tool,
            called: "b__t",
            own_name,
            backend: "b",
            principal: None,
            arguments: None,
            replaced: None,
        }
    }

    fn passed(hooks: &dyn Hooks) -> Watch {
        match hooks.request(&mut call("t")) {
            Ok(Turn::Pass(Some(watch))) => watch,
            _ => panic!("it does not pass"),
        }
    }

    #[test]
    fn each_end_is_heard_once() {
        let diary = Diary::default();
        let hooks = maker(&diary).expect("it is active")();
        drop(passed(&*hooks));
        assert_eq!(diary.take(), ["left"]);
        passed(&*hooks).failed(&Error::new(Kind::Cancelled));
        assert_eq!(diary.take(), ["left"]);
        passed(&*hooks).failed(&Error::new(Kind::Timeout).context("after 1 s"));
        assert_eq!(diary.take(), ["-32001 Request timed out: after 1 s"]);
        let answer = br#"{"jsonrpc":"2.0","id":"x","result":{}}"#.to_vec();
        let answer = passed(&*hooks).answered(answer).unwrap();
        let changed = r#"{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"changed"}}"#;
        assert_eq!(String::from_utf8(answer).unwrap(), changed);
        assert_eq!(diary.take(), ["7 true"]);
        // What is no answer is shown to nobody as one.
        assert!(passed(&*hooks).answered(b"{".to_vec()).is_err());
        assert_eq!(diary.take(), [format!("-32010 {}", Kind::BadAnswer.text())]);
    }

    #[test]
    fn what_does_not_pass_has_no_end_and_a_panic_costs_one_request() {
        let diary = Diary::default();
        let hooks = maker(&diary).expect("it is active")();
        let Ok(Turn::Answer(held, true)) = hooks.request(&mut call("refused")) else { panic!() };
        let told = r#"{"jsonrpc":"2.0","id":5,"error":{"code":-32050,"message":"no"}}"#;
        assert_eq!(held.to(b"5"), told.as_bytes());
        let error = hooks.request(&mut call("panics")).err().expect("an error");
        assert_eq!(error.kind(), Kind::Internal);
        let answer = br#"{"jsonrpc":"2.0","id":1,"result":{"a":"panic"}}"#.to_vec();
        assert_eq!(passed(&*hooks).answered(answer).unwrap_err().kind(), Kind::Internal);
        assert_eq!(diary.take(), [""; 0]);
        drop(passed(&*hooks));
        assert_eq!(diary.take(), ["left"], "it goes on");
        assert!(maker(&()).is_none(), "the empty one is not there");
    }

    #[test]
    fn what_is_spliced_is_one_object() {
        for good in ["{}", " {\"a\":[1,{}]} ", "{\"a\":\"}\"}"] {
            assert_eq!(check_object(good.as_bytes()), Ok(()), "{good}");
            assert_eq!(call("t").set_arguments(good.as_bytes()), Ok(()));
        }
        for bad in ["", "1", "null", "[]", "{", "{}}", "{},{}", "{}x", "{\"a\"}", "\u{1}{}"] {
            assert!(check_object(bad.as_bytes()).is_err(), "{bad}");
            assert!(Refusal::new(1, "x").with_data(bad.as_bytes()).is_err());
            let mut call = call("t");
            assert!(call.set_arguments(bad.as_bytes()).is_err());
            assert_eq!(call.arguments(), None);
        }
        assert!(check_object(b"{\"a\":\"\xff\"}").is_err());
    }
}
