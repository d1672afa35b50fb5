//! Owns: the bounds of what clients, backends and files may take, and every wait for somebody else,
//! each with its unit and its reason.
//! Never: behaviour; what is of one format alone (a label in `sse`, a part of a `template`), how often
//! a module looks at something of its own, and the size of its buffers: these stand there.
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
/// Bytes of the answers to one batch up to which they are held for one array; larger ones go out as
/// events, each as it comes.
pub const BATCH_HELD_BYTES_MAX: usize = 1024 * 1024;
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
/// The same, and a client that sends no byte of its body, while the proxy ends: others wait for them.
pub const HURRY_STALL: Duration = Duration::from_secs(2);
/// A refused client may go on sending for this long, and this many bytes, unread: closing at once
/// would reset the connection and take the answer with it.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
/// See [`LINGER_TIMEOUT`].
pub const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Requests of one connection.
pub const REQUESTS_PER_CONNECTION_MAX: u32 = 10_000;
/// Connections of one client address; loopback addresses are free of it.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// A client that is one too many has this long to take the answer that says so.
pub const TURN_AWAY_WAIT: Duration = Duration::from_secs(1);
/// After a drain begins, a connection may still bring one request that was under way.
pub const DRAIN_GRACE: Duration = Duration::from_millis(500);
/// Backlog of each listener: shorter ones delay bursts of connects by whole seconds.
pub const LISTEN_BACKLOG: i32 = 4096;

/// An address that is in use is tried again for this long, after each [`BIND_PAUSE`]: listeners of
/// a proxy that was killed outlive it by some milliseconds, longer on a loaded machine.
pub const BIND_PATIENCE: Duration = Duration::from_secs(2);
/// See [`BIND_PATIENCE`].
pub const BIND_PAUSE: Duration = Duration::from_millis(20);

/// A comment on a silent event stream, so that nothing on the way cuts it.
pub const SSE_COMMENT_INTERVAL: Duration = Duration::from_secs(15);
/// Bytes queued for one event stream; beyond it the backend is not read.
pub const SSE_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// Messages queued for one event stream.
pub const SSE_QUEUE_MESSAGES_MAX: usize = 1024;

/// Bytes of memory that a worker has ready at most for answers that are expected to be large, before any
/// of them has come. Beyond, an answer gets memory when its head is there.
pub const ANSWERS_LENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of events that are held at most for others that are there already, to go out with them in one
/// write.
pub const EVENTS_HELD_BYTES: usize = 64 * 1024;

/// Messages kept of one event stream, for a client that comes back (`Last-Event-ID`).
pub const REPLAY_MESSAGES_MAX: usize = 1024;
/// Bytes kept of one event stream; a single message may be larger while nobody has taken it.
pub const REPLAY_BYTES_MAX: usize = SSE_QUEUE_BYTES_MAX;
/// Bytes kept of all streams of one session that nobody reads.
pub const REPLAY_SESSION_BYTES_MAX: usize = 1024 * 1024;
/// Streams of one session that are kept while nobody reads them, per worker.
pub const REPLAY_SESSION_STREAMS_MAX: usize = 32;
/// So many are left when there were more: who counts them looks at each, and need not for every stream
/// that ends.
pub const REPLAY_SESSION_STREAMS_LEFT: usize = 24;
/// Bytes kept of all streams of a worker.
pub const REPLAY_WORKER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Streams that a worker keeps while nobody reads them.
pub const REPLAY_WORKER_STREAMS_MAX: usize = 4096;
/// A stream that nobody reads is kept for this long, or to the end of its call if that is later.
/// Clients come back within seconds; a machine that slept or changed its network, within minutes.
pub const REPLAY_TTL: Duration = Duration::from_secs(300);
/// Bytes of a stream that are handed to its reader at once.
pub const REPLAY_STEP_BYTES: usize = 64 * 1024;
/// A reader on another worker that gave no sign for this long has left: it gives one at least with
/// every [`SSE_COMMENT_INTERVAL`].
pub const REPLAY_READER_SILENCE: Duration = Duration::from_secs(60);
/// Calls of a worker that go on although their client's connection is lost; beyond it they are
/// abandoned.
pub const DETACHED_MAX: usize = 256;
/// A server that ends the stream of an answer asks for a pause before it is taken up again; it is
/// kept within these.
pub const RESUME_PAUSE_MIN: Duration = Duration::from_millis(10);
/// See [`RESUME_PAUSE_MIN`].
pub const RESUME_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often in a row the stream of an answer is taken up without an event on it.
pub const RESUME_TRIES_MAX: u32 = 3;
/// What clients are told to wait before they open a lost stream again (`retry`).
pub const SSE_RETRY: Duration = Duration::from_secs(1);

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
/// What a child wrote before it ended is still in its pipe, and one that closed its output mostly ends
/// at once, with a status that says why: each is waited for this long.
pub const CHILD_LAST_WORDS: Duration = Duration::from_millis(100);
/// Its standard error is read for this long after its end: somebody outside its group may hold it.
pub const CHILD_STDERR_END: Duration = Duration::from_millis(500);
/// Bytes waiting to be written to one child; beyond it calls are refused with -32012.
pub const CHILD_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A child that takes no byte of its input for this long is killed and started anew.
pub const CHILD_WRITE_STALL: Duration = Duration::from_secs(30);
/// Bytes per second of a child's stderr that reach the log.
pub const STDERR_BYTES_PER_SECOND: usize = 64 * 1024;
/// Copies of calls under way, per worker; beyond it none is taken.
pub const COPIES_MAX: usize = 256;
/// Lists over which callers are spread that have a rate limit of their own each.
pub const RATE_BUCKETS: usize = 1024;
/// Callers on one of them; one who finds it full is refused as if he were over his limit. With some
/// 2,000 callers within a period that happens to one of 5,000.
pub const RATE_BUCKET_CALLERS_MAX: usize = 8;
/// Requests of one caller in a period: with all lists full they are 64 MiB of times.
pub const RATE_CALLER_REQUESTS_MAX: usize = 1024;
/// What a caller is told to wait that found a backend's queue full.
pub const CROWDED_RETRY: Duration = Duration::from_secs(1);
/// Requests in flight at one backend, per worker.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Pages followed of one list, and names kept of one kind and backend.
pub const LIST_PAGES_MAX: usize = 1000;
/// See [`LIST_PAGES_MAX`].
pub const LIST_ENTRIES_MAX: usize = 100_000;
/// Bytes kept of the lists of one kind and backend.
pub const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A burst of list changes is answered by one refresh, this long after the first.
pub const LIST_CHANGE_PAUSE: Duration = Duration::from_millis(100);
/// A change that a backend told in the session of one client is told to it with that of the common
/// lists, which takes the pause and a reading of them; it does not wait longer for that.
pub const LIST_CHANGE_WAIT: Duration = Duration::from_secs(1);
/// A ping that is not answered within this marks its backend as down. Shorter than
/// [`REQUEST_TIMEOUT`]: a ping costs a server nothing, and nothing but the mark depends on it.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two probes of a backend whose calls fail while its pings are answered.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two attempts to reach an HTTP backend: an attempt is one connect, so
/// the pauses that spare a crashing child need not apply in full.
pub const HTTP_RETRY_MAX: Duration = Duration::from_secs(5);
/// The longest pause before a child is started again that had once completed its handshake.
pub const RESTART_AFTER_UP_MAX: Duration = Duration::from_secs(10);
/// A backend that lived this long has its back-off forgotten.
pub const LIVED_WELL: Duration = Duration::from_secs(10);
/// Failures in a row from which on a child is shown as crash-looping.
pub const CRASH_LOOP_AFTER: u32 = 4;
/// A call waits this long for a child that is just being started again, for its handshake is
/// usually a matter of milliseconds; the same patience as [`CONNECT_TIMEOUT_DOWN`].
pub const RESTART_WAIT: Duration = CONNECT_TIMEOUT_DOWN;
/// After a cancellation a backend may still answer for this long; its place among the calls at once
/// is free by then.
pub const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// How often deadlines of calls are looked at; also how late an expiry may be.
pub const DEADLINE_TICK: Duration = Duration::from_millis(20);
/// Between two rounds of closing what was idle for too long at backends.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Between two rounds of ending client sessions that were idle for too long. Each looks at all of
/// them, and none is idle for less than a second.
pub const SESSION_SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Resolved addresses of a backend are used for this long; then they are looked up again.
pub const ADDRESS_TTL: Duration = Duration::from_secs(30);
/// A pooled connection that was idle for less is used without asking the kernel whether its peer
/// has left meanwhile.
pub const POOL_TRUST: Duration = Duration::from_millis(1);
/// An event stream that goes on after the answer is read for this long, then closed.
pub const DRAIN_AFTER_ANSWER: Duration = Duration::from_secs(1);
/// Messages of the proxy's own beside calls: cancellations, session ends, answers to pings.
pub const SIDE_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// All sessions that the proxy has with backends are ended within this when it ends itself.
pub const SESSION_ENDS_WAIT: Duration = Duration::from_secs(1);
/// Bytes of a session id that a backend may give.
pub const BACKEND_SESSION_ID_BYTES_MAX: usize = 1024;
/// Bytes of one line of a child's stderr; what is longer is cut.
pub const STDERR_LINE_BYTES_MAX: usize = 4 * 1024;

/// A server that says nothing to `server/discover` for this long is taken for one of the session
/// era: such servers may stay silent before `initialize`.
pub const PROBE_SILENCE: Duration = Duration::from_secs(3);
/// Backend sessions kept for callers without sessions, per worker; the one that was idle for the
/// longest time makes room.
pub const BRIDGES_MAX: usize = 1000;
/// Resources that one listening client may name.
pub const SUBSCRIPTIONS_MAX: usize = 1000;
/// Messages of backends that wait for one listening client; beyond it the backend is not read. One of
/// more than [`SSE_QUEUE_BYTES_MAX`] is dropped.
pub const HEARD_MAX: usize = 16;
/// Bytes of the state of a task that a listening client is told, with its result if it has one; of a
/// longer one it is told nothing, and has to ask. So long may be one notification of a child, too,
/// while no other of its call waits.
pub const HEARD_TASK_BYTES_MAX: usize = 1024 * 1024;
/// Tasks that one listening client may name.
pub const LISTENED_TASKS_MAX: usize = 1000;
/// A client that listens is told what it will hear after this time, whichever backends have
/// agreed by then.
pub const LISTEN_ACK_WAIT: Duration = Duration::from_secs(5);
/// Between two reads of the lists of a backend that neither says how long they are good for nor
/// that they changed.
pub const LIST_POLL: Duration = Duration::from_secs(60);
/// Lists are not read more often than this, however short they are good for.
pub const LIST_TTL_MIN: Duration = Duration::from_secs(5);
/// Arguments of one tool that are repeated in fields of the head.
pub const MIRRORED_MAX: usize = 32;
/// Bytes of the capabilities and the name of one caller, as kept for its backend sessions.
pub const CALLER_BYTES_MAX: usize = 64 * 1024;

/// Client sessions: default of `proxy.max_sessions`.
pub const SESSIONS_MAX: usize = 10_000;
/// Default of `proxy.session_idle_seconds`.
pub const SESSION_IDLE: Duration = Duration::from_secs(1800);
/// Event streams of one session.
pub const STREAMS_PER_SESSION_MAX: usize = 8;
/// Resources of one backend that one session is subscribed to; beyond it -32012.
pub const SUBSCRIPTIONS_PER_SESSION_MAX: usize = 1024;
/// Tasks of all sessions at one backend that they share; beyond it the oldest are forgotten.
pub const TASKS_MAX: usize = 4096;
/// Calls that a child may still talk about though nobody waits for them: while there are any, what
/// it says without naming a call belongs to nobody for sure.
pub const GHOSTS_MAX: usize = 1024;
/// Requests of backends that one session has not answered, per worker; a further one is refused.
pub const ASKS_PER_SESSION_MAX: usize = 64;
/// A request of a backend that its client has not answered after this long is over: a person may
/// be looking for a credit card, but nobody looks for an hour. The call's own limit stands still
/// meanwhile.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(600);
/// Times that a backend of the request era may ask for input in one call of a session: forms of some
/// pages need a handful, and a backend that only wants to be asked again must not be asked for ever.
pub const INPUT_ROUNDS_MAX: u32 = 32;
/// Calls of one worker that wait for callers of the request era to come back with input; one more is
/// told that nobody can be asked. As long as [`ASK_TIMEOUT`], or as a session may be idle.
pub const PARKED_MAX: usize = 256;
/// Of one principal.
pub const PARKED_PER_PRINCIPAL_MAX: usize = 64;
/// A session that stands for callers without one has a stream of its own at its backend; its first call
/// waits so long for the word whether there is one. Servers answer at once, or never.
pub const STREAM_OPEN_WAIT: Duration = Duration::from_secs(1);
/// What a backend asks within this time it asks its caller together.
pub const ASK_TOGETHER: Duration = Duration::from_millis(20);
/// Messages that a backend sends while its call is parked, and that wait for its caller to come back.
pub const MISSED_MAX: usize = 16;
/// Messages of a call that was parked which wait for its caller; further progress is dropped.
pub const PIECES_MAX: usize = 64;
/// Kinds of clients, told apart by their capabilities, whose view of one backend is kept; the least
/// recently used goes first. Programs that call themselves MCP clients have a handful.
pub const VIEW_CLASSES_MAX: usize = 16;
/// Sessions whose own view of one backend a worker keeps.
pub const VIEW_SESSIONS_MAX: usize = 64;
/// Bytes of a client's capabilities, as canonical text, up to which they make a kind of client.
pub const VIEW_CLASS_BYTES_MAX: usize = 4096;
/// Merged lists that a worker keeps beside the common ones.
pub const VIEW_LISTS_MAX: usize = 32;
/// A view that could not be fetched is tried again after this long.
pub const VIEW_RETRY_PAUSE: Duration = PROBE_PAUSE;
/// A signal to end that follows the first one so soon is its echo, not a second order.
pub const SIGNAL_ECHO: Duration = Duration::from_millis(100);
/// Default of `proxy.shutdown_timeout_seconds`.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// What is kept of that for the end of backends, at most a tenth of it: calls that do not end are cut
/// so much earlier.
pub const SHUTDOWN_RESERVE: Duration = Duration::from_secs(1);
/// For killed children to be gone, behind the end of that time.
pub const REAP_TIMEOUT: Duration = Duration::from_millis(250);
/// A child that nobody has called for so long is let go while other calls are still finished.
pub const PARTING_PAUSE: Duration = Duration::from_millis(250);

/// Pooled connections to one backend, per worker: default of `max_connections`. As many as calls
/// usually run at once; each costs a descriptor here and there.
pub const POOL_CONNECTIONS_MAX: usize = 256;
/// Backends that there are at once, those that leave too: places in tables.
pub const BACKENDS_MAX: usize = 4096;
/// A call may be between its plan and its backend for this long: so long a backend that leaves is
/// still there.
pub const LEAVE_GRACE: Duration = Duration::from_millis(500);
/// Every worker prepares a new plan within this, or the old one is kept.
pub const PREPARE_PATIENCE: Duration = Duration::from_secs(10);
/// Default of `idle_seconds`: under the 75 s after which common servers close idle connections.
pub const POOL_IDLE: Duration = Duration::from_secs(60);
/// Default of `max_children`: a script interpreter takes some 50 MiB.
pub const CHILDREN_MAX: usize = 64;
/// Default of `max_children` where each is an event stream: a connection here and there.
pub const SSE_STREAMS_MAX: usize = 1024;
/// A server of the older transport names its endpoint within this.
pub const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the endpoint that such a server names.
pub const ENDPOINT_BYTES_MAX: usize = 2 * 1024;
/// Pings in a row that may stay without an answer on an event stream before it is opened anew: a
/// busy server keeps its callers, a stream that something on the way has forgotten must end.
pub const SSE_MUTE_PINGS: u32 = 3;
/// Messages of one event stream that are being posted at once.
pub const POSTS_MAX: usize = 256;
/// A message that is no request waits this long for the requests posted before it to be accepted:
/// servers accept at once, and none may hold up a cancellation.
pub const POST_ORDER_WAIT: Duration = Duration::from_millis(250);
/// A server that has not accepted a message within this may still answer it.
pub const POST_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the parameters of a call whose answer may be reused.
pub const REUSE_KEY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of an answer that is kept in a cache.
pub const CACHED_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Defaults of `cache.max_entries` and `cache.max_bytes`, for each backend.
pub const CACHE_ENTRIES_MAX: u64 = 1000;
/// See [`CACHE_ENTRIES_MAX`].
pub const CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Default of `idle_stop_seconds`.
pub const CHILD_IDLE_STOP: Duration = Duration::from_secs(300);

/// Bytes of a token that a client shows; a head has room for no more than four of them.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// Bytes of the subject of a token.
pub const PRINCIPAL_BYTES_MAX: usize = 256;
/// Roles that can be told apart: a set of them is one number.
pub const ROLES_MAX: usize = 64;
/// Verified tokens that a worker keeps; beyond it they are verified again.
pub const TOKENS_KEPT_MAX: usize = 1024;
/// Lists that a worker keeps cut to the rights of callers; beyond it they are cut again.
pub const CUT_LISTS_KEPT_MAX: usize = 256;
/// Slow signatures of one worker that helper threads verify at once; beyond it 503.
pub const JWT_VERIFICATIONS_MAX: usize = 16;
/// Keys that are tried on a token that does not name its own.
pub const JWT_KEYS_TRIED_MAX: usize = 4;
/// Client sessions of one principal, over all workers.
pub const SESSIONS_PER_PRINCIPAL_MAX: u32 = 1000;
/// Places in which principals are counted, by hash: 64 KiB.
pub const SESSION_TALLY_PLACES: usize = 16_384;
/// Default of `auth.leeway_seconds`.
pub const JWT_LEEWAY: Duration = Duration::from_secs(60);
/// Bytes of an issuer's key set.
pub const JWKS_BYTES_MAX: usize = 1024 * 1024;
/// Keys of it that are used.
pub const JWKS_KEYS_MAX: usize = 64;
/// Fetching it, from the look-up of the name to the last byte.
pub const JWKS_TIMEOUT: Duration = Duration::from_secs(5);
/// A caller with an unknown key waits this long for newer ones: a fetch, and some.
pub const JWKS_WAIT: Duration = Duration::from_secs(6);
/// Keys are fetched anew this often.
pub const JWKS_INTERVAL: Duration = Duration::from_secs(3600);
/// Unknown keys make the proxy fetch at most this often.
pub const JWKS_REFETCH_PAUSE: Duration = Duration::from_secs(30);
/// The first pause before a failed fetch is tried again; the longest is [`JWKS_REFETCH_PAUSE`].
pub const JWKS_RETRY_INITIAL: Duration = Duration::from_secs(1);

/// How often the control thread looks up when nobody has anything to say to it.
pub const CONTROL_TICK: Duration = Duration::from_millis(100);
/// Notes of workers that wait for the control thread; beyond it they are dropped.
pub const NOTES_LEN: usize = 1024;
/// Workers that have not ended this long after all their limits are left behind.
pub const SHUTDOWN_SLACK: Duration = Duration::from_secs(2);
/// Tries to tell a worker something whose mailbox is full.
pub const ORDER_TRIES: u32 = 100;
/// Pause between two of them.
pub const ORDER_PAUSE: Duration = Duration::from_millis(1);
/// Connections without a request that a router keeps (feature `axum`); more are closed.
pub const ROUTER_IDLE_MAX: usize = 64;
/// A router uses no connection that was idle for this long: its worker may be about to close it.
pub const ROUTER_IDLE: Duration = Duration::from_secs(30);
const _: () = assert!(ROUTER_IDLE.as_secs() < CONNECTION_IDLE_TIMEOUT.as_secs());
/// The banner waits this long for backends that are in their first start.
pub const BANNER_WAIT: Duration = Duration::from_secs(2);

/// A service manager that does not listen is not waited for longer.
pub const NOTIFY_WAIT: Duration = Duration::from_secs(1);

/// How often the files of the configuration are looked at.
pub const WATCH_TICK: Duration = Duration::from_millis(250);
/// A file that has changed is read when it has rested for this long: longer than an editor needs to
/// write it, and than the clock of any file system is coarse.
pub const WATCH_REST: Duration = Duration::from_millis(500);
/// What never rests is read after this time.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(5);
const _: () = assert!(WATCH_TICK.as_millis() < WATCH_REST.as_millis());
const _: () = assert!(WATCH_REST.as_millis() * 4 < WATCH_PATIENCE.as_millis());

/// Bytes of a configuration file.
pub const CONFIG_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a file that holds one secret, or PEM certificates.
pub const SECRET_BYTES_MAX: usize = 1024 * 1024;
/// Faults in the TOML syntax that are shown: one is often the cause of many.
pub const CONFIG_SYNTAX_FAULTS_MAX: usize = 10;

/// Mail waiting for one worker from one sender; a full box is answered with 503.
pub const MAILBOX_LEN: usize = 4096;
/// Calls in a row to children of one other worker, after which a connection goes there: about what the
/// move costs, in crossings.
pub const MOVE_AFTER_CALLS: u8 = 16;
/// Connections that a worker sends to others within a second, so that it is seen in time when the
/// receiver has enough.
pub const MOVES_PER_SECOND_MAX: u32 = 64;
/// A worker that takes more than so many thousandths of a CPU gets no connections of others.
pub const MOVE_LOAD_MAX: u32 = 800;
/// Shortest time over which that is measured.
pub const LOAD_SPAN: Duration = Duration::from_millis(200);
/// A measurement counts for so long.
pub const LOAD_TTL: Duration = Duration::from_secs(5);
/// Another worker answers a question within this, or counts as too busy: it takes it microseconds
/// unless it does not come to its mail at all.
pub const WORKER_ANSWER_WAIT: Duration = Duration::from_secs(5);
/// A question about a stream that was lost is asked again after this.
pub const WORKER_ASK_PAUSE: Duration = Duration::from_millis(50);
/// Mail handled before other tasks of the worker run.
pub const MAIL_BATCH: usize = 256;

/// Helper threads for calls that wait, such as name lookups; they are started when first needed.
pub const BLOCKING_THREADS: usize = 4;
/// Calls waiting for a helper thread; beyond it they fail at once.
pub const BLOCKING_QUEUE_MAX: usize = 256;
/// Children waiting to be started; beyond it a start fails and is tried again later.
pub const BIRTHS_MAX: usize = 1024;

/// Tools that have a series of their own in the metrics; calls of the rest are counted together.
pub const TOOL_SERIES_MAX: usize = 1000;
/// A fault that comes again and again is logged once in this time, with how often it came.
pub const LOG_QUIET: Duration = Duration::from_secs(10);
/// Log lines of one worker that wait to be written; beyond it they are dropped and counted.
pub const LINES_LEN: usize = 4096;
/// Bytes of them.
pub const LINES_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Lines written at a time.
pub const LINES_BATCH: usize = 1024;
/// How often the writer looks whether there are lines: also how late one may be.
pub const LINES_TICK: Duration = Duration::from_millis(25);
/// Bytes of a name, method or id in a log line or span; what is longer is cut.
pub const LINE_FIELD_BYTES_MAX: usize = 256;
/// Bytes of arguments in a log line; longer ones are left out.
pub const LINE_ARGUMENTS_BYTES_MAX: usize = 64 * 1024;
/// Exchanges of one worker whose spans wait to be sent; beyond it they are dropped and counted.
pub const SPANS_LEN: usize = 2048;
/// Exchanges whose spans go out in one request.
pub const SPANS_BATCH: usize = 512;
/// Attempts of one call that have a span.
pub const SPANS_PER_CALL_MAX: usize = 128;
/// How often spans are sent.
pub const SPANS_TICK: Duration = Duration::from_millis(500);
/// A collector has this long for each step of taking a request; then its spans are dropped.
pub const COLLECTOR_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a collector's answer that are looked at.
pub const COLLECTOR_ANSWER_BYTES_MAX: usize = 8 * 1024;
/// What is left to write or send gets this long when the proxy ends.
pub const TELEMETRY_END: Duration = Duration::from_secs(2);
/// Bytes of a request to `/admin`.
pub const ADMIN_BODY_BYTES_MAX: usize = CONFIG_BYTES_MAX;
/// The control thread answers a worker within this, or the worker answers for it.
pub const DESK_PATIENCE: Duration = Duration::from_secs(10);
/// Questions of one worker that wait for the control thread.
pub const QUESTIONS_MAX: usize = 64;

const _: () = assert!(TOKEN_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(JWKS_TIMEOUT.as_secs() < JWKS_WAIT.as_secs());
const _: () = assert!(ROLES_MAX <= u64::BITS as usize);
const _: () = assert!(REQUEST_LINE_BYTES_MAX < HEAD_BYTES_MAX);
const _: () = assert!(SSE_QUEUE_BYTES_MAX < HEARD_TASK_BYTES_MAX);
const _: () = assert!(HEARD_TASK_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(WHOLE_BODY_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(BODY_BYTES_MAX <= CHILD_QUEUE_BYTES_MAX);
const _: () = assert!(BODY_IDLE_TIMEOUT.as_secs() < BODY_READ_TIMEOUT.as_secs());
const _: () = assert!(CONNECT_TIMEOUT_DOWN.as_millis() < 1000);
const _: () = assert!(MAIL_BATCH < MAILBOX_LEN);
const _: () = assert!(REPLAY_BYTES_MAX <= REPLAY_SESSION_BYTES_MAX);
const _: () = assert!(REPLAY_SESSION_STREAMS_LEFT < REPLAY_SESSION_STREAMS_MAX);
const _: () = assert!(REPLAY_SESSION_BYTES_MAX <= REPLAY_WORKER_BYTES_MAX);
const _: () = assert!(SSE_COMMENT_INTERVAL.as_secs() * 2 < REPLAY_READER_SILENCE.as_secs());
