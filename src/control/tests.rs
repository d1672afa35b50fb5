//! Owns: the tests of the control thread and of what an embedding program holds.
//! Never: clients or backends.
//! Next: nothing.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use super::*;
use crate::rt;
use crate::worker::Seat;
use crate::worker::orders::Mail;

/// The least executor there is: a future must not need more.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn config(lines: &str) -> ProxyConfig {
    let text = format!(
        "[proxy]\nname = 'p'\nworkers = 2\nshutdown_timeout_seconds = 0\n{lines}\n\
         [[backends]]\nname = 'a'\ntransport = 'stdio'\ncommand = 'true'\n\
         [[backends]]\nname = 'b'\ntransport = 'http'\nurl = 'http://127.0.0.1:1'\n"
    );
    ProxyConfig::parse(&text).unwrap()
}

pub(super) fn any_port() -> ProxyConfig {
    config("listen.port = 0")
}

const EPOLL: Options = Options { driver: Some(Driver::Epoll), listen: true };

fn start(config: ProxyConfig, work: Work) -> Result<Proxy, ProxyError> {
    let proxy = Proxy::begin(config, EPOLL, work, ())?;
    proxy.handle.0.wait(None, State::started).unwrap()?;
    Ok(proxy)
}

/// A worker that listens and takes mail until it is drained.
const IDLE: Work = |seat| idle(seat, || Ok(()));

fn idle(seat: Seat, end: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    seat.driver.run(async {
        let listener = rt::net::Listener::bind(seat.listen)?;
        (seat.ready)(listener.local_addr()?);
        let drained = rt::local::Event::new();
        let mail = seat.mail.inbox.serve(|_, mail| {
            assert!(matches!(mail, Mail::Drain));
            drained.set();
        });
        rt::race(mail, drained.wait()).await;
        end()
    })?
}

#[test]
fn workers_share_a_port_that_the_system_chose_and_end_when_asked() {
    let proxy = start(any_port(), IDLE).unwrap();
    let handle = proxy.handle();
    assert_ne!(handle.addr().port(), 0);
    std::net::TcpStream::connect(handle.addr()).unwrap();
    let server = std::thread::spawn(move || block_on(proxy.serve()));
    handle.shutdown();
    handle.shutdown();
    assert_eq!(server.join().unwrap(), Ok(()));
    assert_eq!(handle.wait(), Ok(()));
    assert!(std::net::TcpStream::connect(handle.addr()).is_err());
}

#[test]
fn a_dropped_proxy_ends() {
    let proxy = start(any_port(), IDLE).unwrap();
    let handle = proxy.handle();
    drop(proxy);
    assert_eq!(handle.wait(), Ok(()));
    // The same by way of a future that is never polled to its end.
    let proxy = start(any_port(), IDLE).unwrap();
    let handle = proxy.handle();
    drop(proxy.serve());
    assert_eq!(handle.wait(), Ok(()));
}

#[test]
fn an_address_in_use_is_told_with_the_way_out() {
    // Held by a proxy, whose listeners would share it with any other of the same user.
    let first = start(any_port(), IDLE).unwrap();
    let addr = first.handle().addr();
    let second = start(config(&format!("listen.port = {}", addr.port())), IDLE);
    let Err(ProxyError::Start(message)) = second else { panic!("{second:?}") };
    assert!(message.starts_with(&format!("cannot listen on {addr}: ")), "{message}");
    assert!(message.contains("--listen"), "{message}");
    // Held by a stranger.
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let refused = start(config(&format!("listen.port = {port}")), IDLE);
    assert!(matches!(refused, Err(ProxyError::Start(_))), "{refused:?}");
    // An address of another machine (TEST-NET-1, RFC 5737).
    let refused = start(config("listen = { host = '192.0.2.1', port = 0 }"), IDLE);
    let Err(ProxyError::Start(message)) = refused else { panic!("{refused:?}") };
    assert!(message.contains("this machine has no such address"), "{message}");
}

#[test]
fn a_worker_that_falls_ends_the_proxy() {
    const PANICS: Work = |seat| match seat.id {
        0 => IDLE(seat),
        _ => {
            (seat.ready)(seat.listen);
            panic!("for a test");
        }
    };
    let proxy = start(any_port(), PANICS).unwrap();
    let error = ProxyError::Worker("worker 1 panicked: for a test".to_owned());
    assert_eq!(block_on(proxy.serve()), Err(error));

    const LEAVES: Work = |seat| {
        (seat.ready)(seat.listen);
        if seat.id == 0 { Err(io::Error::other("no more")) } else { Ok(()) }
    };
    let proxy = start(any_port(), LEAVES).unwrap();
    let Err(ProxyError::Worker(message)) = block_on(proxy.serve()) else { panic!("served") };
    assert!(message.ends_with("no more") || message.ends_with("unasked"), "{message}");
}

#[test]
fn a_worker_that_fails_before_it_listens_fails_the_start() {
    for (work, part) in [
        ((|_| Err(io::Error::from(io::ErrorKind::PermissionDenied))) as Work, "privilege"),
        (|_| Ok(()), "a worker ended while it started"),
        (|_| panic!("for a test"), "a worker panicked: for a test"),
    ] {
        let Err(ProxyError::Start(message)) = start(any_port(), work) else { panic!() };
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn an_error_while_draining_is_an_error_of_the_end() {
    const FAILS: Work = |seat| idle(seat, || Err(io::Error::other("late")));
    let proxy = start(any_port(), FAILS).unwrap();
    let handle = proxy.handle();
    handle.shutdown();
    let Err(ProxyError::Worker(message)) = handle.wait() else { panic!("ended well") };
    assert!(message.ends_with("failed: late"), "{message}");
}

#[test]
fn what_a_process_that_listens_cannot_change_is_named_and_the_rest_applied() {
    let proxy = Proxy::start(any_port(), EPOLL).unwrap();
    let handle = proxy.handle();
    let addr = handle.addr();
    let port = if addr.port() == 4242 { 4243 } else { 4242 };
    let other = config(&format!("listen = {{ host = '::1', port = {port} }}"));
    let mut other = other;
    other.proxy.workers = any_port().proxy.workers.map(|_| super::setting::Count(3));
    other.proxy.name = "other".to_owned();
    let applied = block_on(handle.reload_with(other)).unwrap();
    let keys = ["proxy.listen.host", "proxy.listen.port", "proxy.workers"];
    assert_eq!(applied.needs_restart, keys);
    assert_eq!((applied.generation, handle.reloads().applied), (2, 1));
    assert_eq!((handle.addr(), handle.backends().len()), (addr, 2));
    std::net::TcpStream::connect(addr).unwrap();
    // Nothing has been read from a file that could be read again.
    let Err(NotApplied::Faults(report)) = handle.reload_now() else { panic!("reloaded") };
    assert!(report.to_string().contains("not read from a file"), "{report}");
    assert_eq!((handle.reloads().generation, handle.reloads().failed), (2, 1));
    handle.shutdown();
    assert_eq!(handle.wait(), Ok(()));
    assert!(matches!(block_on(handle.reload()), Err(NotApplied::Failed(_))));
}

#[test]
fn a_driver_that_was_asked_for_is_never_replaced() {
    let proxy = start(any_port(), |seat| {
        assert_eq!(seat.driver, Driver::Epoll);
        IDLE(seat)
    });
    proxy.unwrap();
}

#[test]
fn from_config_works_under_any_executor() {
    let proxy = block_on(Proxy::from_config(any_port())).unwrap();
    assert_ne!(proxy.handle().addr().port(), 0);
    proxy.handle().shutdown();
    assert_eq!(block_on(proxy.serve()), Ok(()));
}
