//! Owns: every bound of the proxy, with its unit and its reason.
//! Never: behaviour.
//! Next: `error`, the answers given when a bound is met.

use std::time::Duration;

/// Bytes of a message head, request or response: beyond it 431.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Header fields of one head: beyond it 431.
pub const HEADERS_MAX: usize = 100;
/// Bytes of a request line: beyond it 414.
pub const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of one request body: beyond it 413, before the body is read.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Nesting of a JSON document: serde_json's own bound, so that both parsers agree.
pub const JSON_DEPTH_MAX: usize = 128;
/// Bytes of one number, and of one JSON-RPC id as it is written: what must be kept of a message
/// that streams through.
pub const SCALAR_BYTES_MAX: usize = 1024;
/// Bytes of one message from a backend that must be held whole: an event, a stdio line.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a backend's response body up to which it is collected before it is passed on.
pub const WHOLE_BODY_BYTES_MAX: usize = 64 * 1024;
/// Messages of one batch (2025-03-26).
pub const BATCH_MAX: usize = 100;
/// Bytes of a chunk-size line with its extensions, and of all trailers together.
pub const CHUNK_LINE_BYTES_MAX: usize = 4 * 1024;

/// From the first byte of a head to its last.
pub const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// From the end of a head to the end of its body.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two reads of a body.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request.
pub const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// A client that takes no byte of its answer.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A refused client may go on sending for this long, and this many bytes, unread: closing at once
/// would reset the connection and take the answer with it.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// See [`LINGER_TIMEOUT`].
pub const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Requests of one connection.
pub const REQUESTS_PER_CONNECTION_MAX: u32 = 10_000;
/// Connections of one client address; loopback addresses are free of it.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// Backlog of each listener: shorter ones delay bursts of connects by whole seconds.
pub const LISTEN_BACKLOG: i32 = 4096;

/// A comment on a silent event stream, so that nothing on the way cuts it.
pub const SSE_COMMENT_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes queued for one event stream; beyond it the backend is not read.
pub const SSE_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// Messages queued for one event stream.
pub const SSE_QUEUE_MESSAGES_MAX: usize = 1024;

/// TCP connect to a backend that was well.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// TCP connect to a backend known to be down: its callers must not wait.
pub const CONNECT_TIMEOUT_DOWN: Duration = Duration::from_millis(800);
/// TLS handshake, either side.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// One attempt of tools/call; the client's own limit comes first.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(300);
/// One attempt of any other request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between attempts to bring a backend up: the first, and the longest.
pub const RESTART_INITIAL: Duration = Duration::from_millis(500);
/// See [`RESTART_INITIAL`].
pub const RESTART_MAX: Duration = Duration::from_secs(30);
/// A backend that completes no handshake within this is tried again.
pub const STARTUP_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two pings of a backend that nobody calls.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A child that ignores the end of its input gets SIGTERM after this, and SIGKILL after
/// [`CHILD_KILL_AFTER`] more.
pub const CHILD_TERM_AFTER: Duration = Duration::from_secs(2);
/// See [`CHILD_TERM_AFTER`].
pub const CHILD_KILL_AFTER: Duration = Duration::from_secs(5);
/// Bytes waiting to be written to one child; beyond it calls are refused with -32012.
pub const CHILD_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A child that takes no byte of its input for this long is killed and started anew.
pub const CHILD_WRITE_STALL: Duration = Duration::from_secs(30);
/// Bytes per second of a child's stderr that reach the log.
pub const STDERR_BYTES_PER_SECOND: usize = 64 * 1024;
/// Requests in flight at one backend, per worker.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Pages followed of one list, and names kept of one kind and backend.
pub const LIST_PAGES_MAX: usize = 1000;
/// See [`LIST_PAGES_MAX`].
pub const LIST_ENTRIES_MAX: usize = 100_000;

/// Client sessions: default of `proxy.max_sessions`.
pub const SESSIONS_MAX: usize = 10_000;
/// Default of `proxy.session_idle_seconds`.
pub const SESSION_IDLE: Duration = Duration::from_secs(1800);
/// Event streams of one session.
pub const STREAMS_PER_SESSION_MAX: usize = 8;
/// Default of `proxy.shutdown_timeout_seconds`.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);

/// Mail waiting for one worker from one sender; a full box is answered with 503.
pub const MAILBOX_LEN: usize = 4096;
/// Mail handled before other tasks of the worker run.
pub const MAIL_BATCH: usize = 256;

/// Helper threads for calls that wait, such as name lookups; they are started when first needed.
pub const BLOCKING_THREADS: usize = 4;
/// Calls waiting for a helper thread; beyond it they fail at once.
pub const BLOCKING_QUEUE_MAX: usize = 256;
/// Children waiting to be started; beyond it a start fails and is tried again later.
pub const BIRTHS_MAX: usize = 1024;

const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(WHOLE_BODY_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX <= CHILD_QUEUE_BYTES_MAX);
const _: () = assert!(BODY_IDLE_TIMEOUT.as_secs() < BODY_READ_TIMEOUT.as_secs());
const _: () = assert!(CONNECT_TIMEOUT_DOWN.as_millis() < 1000);
const _: () = assert!(MAIL_BATCH < MAILBOX_LEN);
