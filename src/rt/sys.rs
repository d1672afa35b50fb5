//! Owns: the system calls that std does not wrap, each behind a safe signature, and the call of what
//! is compiled for this machine alone. The only module with `unsafe`.
//! Never: policy; callers decide what a failure means.
//! Next: `wide`, what is compiled for this machine alone.

#![allow(unsafe_code)]

use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::Command;
use std::ptr::NonNull;
use std::time::Duration;

use monoio::buf::IoVecBufMut;
use monoio::io::OwnedReadHalf;
use monoio::net::TcpStream;

#[cfg(target_arch = "x86_64")]
use super::wide::{self, Marks};

/// Turns the -1 of a system call into the error of this thread.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// As [`check`], for calls that count bytes.
fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// What a socket holds without waiting and without taking anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peek {
    /// Open, nothing to read.
    Quiet,
    /// Bytes are waiting.
    Bytes,
    /// The peer closed or reset.
    Closed,
}

/// Looks at a socket with `MSG_PEEK | MSG_DONTWAIT`.
pub(super) fn peek(fd: RawFd) -> Peek {
    let mut byte = 0u8;
    loop {
        // SAFETY: the kernel writes at most one byte into a local of one byte.
        // JUSTIFICATION: std's `peek` would block on the ring, where sockets are blocking.
        let n = unsafe {
            libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT)
        };
        match check_len(n) {
            Ok(0) => return Peek::Closed,
            Ok(_) => return Peek::Bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Peek::Quiet,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Peek::Closed,
        }
    }
}

/// Whether the peer of a socket has closed or reset, whatever waits to be read.
pub(super) fn hung_up(fd: RawFd) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one valid pollfd, and its count.
    // JUSTIFICATION: std has no poll.
    let n = unsafe { libc::poll(&raw mut poll, 1, 0) };
    n > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Waits until a split stream has something to read.
pub(super) async fn readable(half: &OwnedReadHalf<TcpStream>) -> io::Result<()> {
    // SAFETY: both halves live on this thread, and no method of the stream keeps a reference to
    // it beyond building its operation, which owns the descriptor.
    // JUSTIFICATION: the read half offers reads only, and a second descriptor for each connection
    // would double what the process needs.
    let stream = unsafe { &*half.0.get() };
    stream.readable(false).await
}

/// Sets `TCP_NODELAY`; accepted sockets inherit it from their listener.
pub(super) fn set_nodelay(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is a local integer and its size is passed beside it.
    // JUSTIFICATION: std's listener has no such setter.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Keeps a descriptor from the children of this process.
pub(super) fn set_cloexec(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only.
    // JUSTIFICATION: the ring's accept leaves the flag off, and std has no setter.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Makes reads and writes of a pipe return instead of waiting.
pub(super) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes integers only.
    // JUSTIFICATION: std has no setter for pipes.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: takes integers only.
    // JUSTIFICATION: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// A second descriptor of the same socket or pipe, kept from the children of this process.
pub(super) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    // JUSTIFICATION: std duplicates only what it owns, and the runtime owns this one.
    let fd = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just handed this descriptor to us alone.
    // JUSTIFICATION: from here on std closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The CPU time that this thread has taken so far.
pub(super) fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec into a local.
    // JUSTIFICATION: std knows the clocks of the wall and of the machine only.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    match check(result) {
        Ok(_) => Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
        Err(_) => Duration::ZERO,
    }
}

/// Ends the sending side of a socket.
pub(super) fn shutdown_write(fd: RawFd) {
    // SAFETY: takes integers only; a socket that is gone already answers with an error.
    // JUSTIFICATION: the runtime offers it only through `&mut` and as a future.
    let _ = unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Wakes whoever accepts on a listening socket, for good.
pub(super) fn shutdown_listener(fd: RawFd) {
    // SAFETY: takes integers only; a socket that is gone already answers with an error.
    // JUSTIFICATION: the runtime can end an accept only by dropping it, which leaks connections.
    let _ = unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Reads once behind the end of `buf`, into all the room that it has.
pub(super) fn read(fd: RawFd, buf: &mut Vec<u8>) -> io::Result<usize> {
    let spare = buf.spare_capacity_mut();
    // SAFETY: pointer and length are those of the vector's own spare room.
    // JUSTIFICATION: std reads into initialised memory, and only through a `File` that would
    // close the descriptor.
    let n = check_len(unsafe { libc::read(fd, spare.as_mut_ptr().cast(), spare.len()) })?;
    let len = buf.len() + n;
    debug_assert!(len <= buf.capacity());
    // SAFETY: the kernel has just initialised `n` bytes behind the old end, inside the capacity.
    // JUSTIFICATION: saves filling the room with zeros before every read.
    unsafe { buf.set_len(len) };
    Ok(n)
}

/// Writes once.
pub(super) fn write(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one slice, which the kernel only reads.
    // JUSTIFICATION: std writes only through a `File` that would close the descriptor.
    check_len(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
}

/// A blocking event counter at zero.
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    // JUSTIFICATION: std has no eventfd.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: the kernel has just handed this descriptor to us alone.
    // JUSTIFICATION: from here on std closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that becomes readable when the process ends. `pid` must be a child that nobody has
/// reaped, else the number may belong to another process.
pub(super) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes integers only.
    // JUSTIFICATION: std's pidfd is unstable, and libc has no wrapper.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: the kernel has just handed this descriptor to us alone.
    // JUSTIFICATION: from here on std closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to a process group.
pub(super) fn kill_group(group: u32, signal: libc::c_int) -> io::Result<()> {
    // Group 0 is our own and 1 would be everybody's (-1): never signal those.
    let group =
        libc::pid_t::try_from(group).ok().filter(|g| *g > 1).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: takes integers only.
    // JUSTIFICATION: std kills single processes only.
    check(unsafe { libc::kill(-group, signal) }).map(drop)
}

/// Prepares a command so that its process is born with an empty signal mask and no descriptor of
/// ours, and is killed by the kernel when the *thread* that spawns it ends.
pub(super) fn harden(command: &mut Command) {
    let parent = std::process::id() as libc::pid_t;
    let hook = move || {
        // SAFETY: an all-zero sigset_t is a valid object, which sigemptyset then initialises.
        // JUSTIFICATION: libc offers no other constructor; std has no signal masks.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        }
        // SAFETY: takes integers only; both are async-signal-safe.
        // JUSTIFICATION: std has no prctl. The second look closes the gap in which the parent
        // could have died before the kernel knew our wish.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0))?;
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        close_on_exec_from(3);
        Ok(())
    };
    // SAFETY: the hook runs between fork and exec; it makes only async-signal-safe calls, does not
    // allocate (errors are raw codes), and touches no lock.
    // JUSTIFICATION: std has no safe way to set these before exec.
    unsafe { command.pre_exec(hook) };
}

/// Marks every descriptor from `first` on to be closed by exec. Sockets accepted by a ring, and
/// whatever an embedding program has opened, must not reach a child.
fn close_on_exec_from(first: libc::c_uint) {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: takes integers only, and marks descriptors instead of closing them, so std's own
    // pipe for exec errors stays usable.
    // JUSTIFICATION: std has no close_range.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 {
        return;
    }
    // Before Linux 5.11: one by one, up to a bound that keeps the fork short.
    for fd in first as libc::c_int..65_536 {
        let _ = set_cloexec(fd);
    }
}

/// The set of `signals`.
fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid object, which sigemptyset then initialises; the
    // pointers are those of a local.
    // JUSTIFICATION: libc offers no other constructor.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Blocks `signals` on this thread and on those that it starts later.
pub(super) fn block_signals(signals: &[libc::c_int]) -> io::Result<()> {
    let set = signal_set(signals);
    // SAFETY: a valid set, and a null pointer where the old mask is not wanted.
    // JUSTIFICATION: std has no signal masks.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Takes one of the blocked `signals`, or `None` when `limit` has passed.
pub(super) fn take_signal(
    signals: &[libc::c_int],
    limit: Duration,
) -> io::Result<Option<libc::c_int>> {
    let set = signal_set(signals);
    let limit = libc::timespec {
        tv_sec: limit.as_secs().min(i32::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(limit.subsec_nanos()),
    };
    // SAFETY: a valid set and time, and a null pointer where the details are not wanted.
    // JUSTIFICATION: std has no signals.
    let taken =
        unsafe { libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const limit) };
    match check(taken) {
        Ok(signal) => Ok(Some(signal)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Two buffers for one read: the room given in the first is filled before the second gets any.
pub(super) struct Pair {
    first: Vec<u8>,
    second: Vec<u8>,
    /// The rooms. On the heap, where they stay while the pair is moved.
    rooms: Box<[libc::iovec; 2]>,
}

impl Pair {
    /// Room behind the end of `first`, and a second buffer of its own.
    pub(super) fn new(mut first: Vec<u8>, room: usize, more: usize) -> Pair {
        first.reserve(room);
        let mut second = super::spare::buffer(more);
        let rooms = Box::new([
            libc::iovec { iov_base: first.spare_capacity_mut().as_mut_ptr().cast(), iov_len: room },
            libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: more },
        ]);
        Pair { first, second, rooms }
    }

    /// Both buffers.
    pub(super) fn into_parts(self) -> (Vec<u8>, Vec<u8>) {
        (self.first, self.second)
    }
}

// SAFETY: the two rooms are spare capacity of the two vectors, which nobody can reach to move or free
// before the pair is taken apart; they and their descriptions are on the heap, so that moving the
// pair moves neither.
// JUSTIFICATION: the runtime's own pair takes only buffers that are filled already, so that each read
// would begin with writing zeros.
unsafe impl IoVecBufMut for Pair {
    fn write_iovec_ptr(&mut self) -> *mut libc::iovec {
        self.rooms.as_mut_ptr()
    }

    fn write_iovec_len(&mut self) -> usize {
        self.rooms.len()
    }

    unsafe fn set_init(&mut self, pos: usize) {
        let in_first = pos.min(self.rooms[0].iov_len);
        let in_second = (pos - in_first).min(self.rooms[1].iov_len);
        // SAFETY: the caller says that the kernel has filled `pos` bytes, in the order of the rooms,
        // each of which ends within the capacity of its vector.
        // JUSTIFICATION: see above.
        unsafe {
            self.first.set_len(self.first.len() + in_first);
            self.second.set_len(in_second);
        }
    }
}

/// Runs `work` compiled for the widest vectors that this machine has, if it is inlined here.
#[inline]
pub(super) fn widest<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been found to have what the function is compiled for.
        // JUSTIFICATION: what is known only at run time cannot be called otherwise.
        return unsafe { with_avx2(work) };
    }
    work()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<T>(work: impl FnOnce() -> T) -> T {
    work()
}

/// See [`wide::marks`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn marks(block: &[u8; wide::LEAST]) -> Marks {
    // SAFETY: every x86_64 processor has SSE2.
    // JUSTIFICATION: no loop is compiled to a mask of a vector's bytes, and the intrinsics that make
    // one are safe only within a function like that one.
    unsafe { marks_by_sse2(block) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "sse2")]
fn marks_by_sse2(block: &[u8; wide::LEAST]) -> Marks {
    use std::arch::x86_64::*;

    let bits = u128::from_le_bytes(*block);
    let bytes = _mm_set_epi64x((bits >> 64) as i64, bits as i64);
    // With one bit changed, a quote stands right above the control characters.
    let turned = _mm_xor_si128(bytes, _mm_set1_epi8(0x02));
    let low = _mm_cmpeq_epi8(_mm_min_epu8(turned, _mm_set1_epi8(0x20)), turned);
    let slash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
    Marks {
        ends: _mm_movemask_epi8(_mm_or_si128(low, slash)).cast_unsigned(),
        beyond: _mm_movemask_epi8(bytes).cast_unsigned(),
    }
}

/// The event counter rung once: adds one.
pub(super) fn ring_eventfd(fd: &OwnedFd) {
    // A counter cannot overflow by ones in the life of a process, so this never blocks or fails.
    let _ = write(fd.as_raw_fd(), &1u64.to_ne_bytes());
}

/// A box whose storage is taken from a shelf of its thread, and put back there: for what every
/// request needs, and what is too large to be moved or to be kept by an idle connection.
pub struct Place<T>(NonNull<T>);

/// Storage of one layout that nobody uses.
struct Shelf {
    layout: Layout,
    free: Vec<NonNull<u8>>,
}

thread_local! {
    // A handful of types have places, so that the search is short.
    static SHELVES: RefCell<Vec<Shelf>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Shelf {
    fn drop(&mut self) {
        for block in self.free.drain(..) {
            // SAFETY: it was allocated with this very layout, and nobody else has it.
            // JUSTIFICATION: storage that outlives its value has no safe type.
            unsafe { alloc::dealloc(block.as_ptr(), self.layout) };
        }
    }
}

impl<T> Place<T> {
    /// Blocks of one layout that a thread keeps.
    const KEPT: usize = 64;

    /// What `make` gives, written to where it stays.
    pub fn new(make: impl FnOnce() -> T) -> Place<T> {
        const { assert!(size_of::<T>() > 0) };
        let layout = Layout::new::<T>();
        let kept = SHELVES.try_with(|shelves| {
            let mut shelves = shelves.borrow_mut();
            shelves.iter_mut().find(|shelf| shelf.layout == layout)?.free.pop()
        });
        let block = kept.ok().flatten().or_else(|| {
            // SAFETY: the layout has a size, as the constant above demands.
            // JUSTIFICATION: as above.
            NonNull::new(unsafe { alloc::alloc(layout) })
        });
        let place = block.unwrap_or_else(|| alloc::handle_alloc_error(layout)).cast::<T>();
        // SAFETY: the block has the layout of `T` and belongs to this place alone.
        // JUSTIFICATION: a value that is made elsewhere and moved here costs a copy of it.
        unsafe { place.write(make()) };
        Place(place)
    }

    /// As [`Place::new`], for what must not move.
    pub fn pinned(make: impl FnOnce() -> T) -> Pin<Place<T>> {
        // SAFETY: the value never moves: a place lends it, and drops it where it is. The storage
        // is used again only after that; of a place that is forgotten it is lost.
        // JUSTIFICATION: std can pin only its own boxes.
        unsafe { Pin::new_unchecked(Place::new(make)) }
    }
}

impl<T> Deref for Place<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value lives as long as its place, and is lent through it alone.
        // JUSTIFICATION: as for `Shelf`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Place<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        // JUSTIFICATION: as there.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Place<T> {
    fn drop(&mut self) {
        // SAFETY: the value is there, and nobody sees it again. If its drop panics, the storage is
        // lost and nothing else.
        // JUSTIFICATION: as for `Shelf`.
        unsafe { self.0.drop_in_place() };
        let (block, layout) = (self.0.cast::<u8>(), Layout::new::<T>());
        let kept = SHELVES.try_with(|shelves| {
            let mut shelves = shelves.borrow_mut();
            let shelf = match shelves.iter_mut().position(|shelf| shelf.layout == layout) {
                Some(at) => &mut shelves[at],
                None => {
                    shelves.push(Shelf { layout, free: Vec::with_capacity(Self::KEPT) });
                    let last = shelves.len() - 1;
                    &mut shelves[last]
                }
            };
            let fits = shelf.free.len() < Self::KEPT;
            if fits {
                shelf.free.push(block);
            }
            fits
        });
        if !kept.unwrap_or(false) {
            // SAFETY: as in the drop of a shelf.
            // JUSTIFICATION: as there.
            unsafe { alloc::dealloc(block.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Calls that only tests make.

    use super::*;

    /// Forbids io_uring to this thread for ever, as container profiles do, so that the fallback
    /// can be tested on a kernel that has it.
    pub(in crate::rt) fn forbid_rings() -> io::Result<()> {
        const SYS_IO_URING_SETUP: u32 = 425;
        let filter = [
            libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 },
            libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: SYS_IO_URING_SETUP },
            libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x0005_0000 | libc::EPERM as u32 },
            libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0x7fff_0000 },
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program and its filter outlive both calls; the kernel copies them.
        // JUSTIFICATION: std has no seccomp.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            check(libc::prctl(libc::PR_SET_SECCOMP, 2, &raw const program)).map(drop)
        }
    }

    /// Lets children inherit a descriptor.
    pub(in crate::rt) fn clear_cloexec(fd: RawFd) -> io::Result<()> {
        // SAFETY: takes integers only.
        // JUSTIFICATION: std always sets the flag.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
    }

    /// Makes a listener's backlog as small as can be.
    pub(in crate::rt) fn shrink_backlog(fd: RawFd) -> io::Result<()> {
        // SAFETY: takes integers only.
        // JUSTIFICATION: std's backlog is fixed.
        check(unsafe { libc::listen(fd, 0) }).map(drop)
    }

    /// Sends a signal to this thread.
    pub(in crate::rt) fn raise(signal: libc::c_int) -> io::Result<()> {
        // SAFETY: takes integers only.
        // JUSTIFICATION: std has no signals.
        check(unsafe { libc::raise(signal) }).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_place_is_used_again_and_its_value_dropped_once() {
        let witness = Rc::new(());
        let one = Place::new(|| (witness.clone(), [1u64; 9]));
        let at = one.0;
        assert_eq!((Rc::strong_count(&witness), one.1[8]), (2, 1));
        drop(one);
        assert_eq!(Rc::strong_count(&witness), 1);
        let mut two = Place::new(|| (witness.clone(), [2u64; 9]));
        assert_eq!((two.0, two.1[8]), (at, 2));
        two.1[8] = 3;
        let other = Place::new(|| (witness.clone(), [4u64; 9]));
        assert_ne!(other.0, at);
        assert_eq!(two.1[8], 3);
        // What is forgotten keeps its storage for good.
        std::mem::forget(two);
        drop(other);
        for _ in 0..3 {
            assert_ne!(Place::new(|| (witness.clone(), [5u64; 9])).0, at);
        }
        assert_eq!(Rc::strong_count(&witness), 2);
    }

    #[test]
    fn places_of_one_thread_are_bounded_and_end_with_it() {
        #[repr(align(64))]
        struct Wide([u8; 64]);
        std::thread::spawn(|| {
            let many: Vec<_> = (0..200u8).map(|n| Place::new(|| Wide([n; 64]))).collect();
            for (n, place) in many.iter().enumerate() {
                let Wide(bytes) = &**place;
                assert_eq!((bytes.as_ptr() as usize % 64, bytes[63]), (0, n as u8));
            }
            drop(many);
            let layout = Layout::new::<Wide>();
            let kept = SHELVES.with_borrow(|shelves| {
                shelves.iter().find(|shelf| shelf.layout == layout).map(|shelf| shelf.free.len())
            });
            assert_eq!(kept, Some(Place::<Wide>::KEPT));
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_pinned_future_stays_where_it_is() {
        let mut future = Place::pinned(|| async {
            let here = 7;
            let before = &raw const here;
            std::future::poll_fn({
                let mut polled = false;
                move |_| match std::mem::replace(&mut polled, true) {
                    false => std::task::Poll::Pending,
                    true => std::task::Poll::Ready(()),
                }
            })
            .await;
            std::ptr::eq(before, &raw const here)
        });
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        let mut future = std::convert::identity(future);
        assert_eq!(future.as_mut().poll(&mut cx), std::task::Poll::Ready(true));
    }
}
