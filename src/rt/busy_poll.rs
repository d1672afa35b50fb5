//! Owns: busy polling: a thread that looks for what comes for a moment before it sleeps.
//! Never: a busy thread while nothing comes soon, or while others want its core.
//! Next: `net`, what runs on the loop.
//!
//! To sleep and to be woken takes a thread longer than a lone call itself, and a proxy does it twice a
//! call. With one call in flight at most, and if the last waits of that kind (for a server's answer, or
//! for a client's next call) were short, the thread looks at its ring instead, for [`set`]'s time at
//! most. With more calls, or where it hardly ever waits, what comes comes in batches, and looks would
//! tear them apart.
//!
//! At each look it gives its core to whoever wants it. A server or a client that is woken there comes at
//! once, where it would have to wake another core up. If it takes the core for long, the thread sleeps
//! as usual for a while: who sleeps gets a core back sooner than who gives way.
//!
//! Two tasks take turns, because the runtime runs a task that wakes itself before all others; between
//! the two, it looks at what has come.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::mem;
use std::task::{Poll, Waker};
use std::thread::LocalKey;
use std::time::{Duration, Instant};

use super::time;

/// Calls in flight at most while the thread looks.
const FEW: u32 = 1;
/// So many calls at once are not a few callers', whose next ones would be waited for.
const MANY: u32 = 3;
/// Short waits in a row after which the next one is expected to be short.
const ENOUGH: u8 = 2;
/// As many at most, however often that was wrong.
const ENOUGH_MAX: u8 = 64;
/// Without a sleep for at most so long: timers fire, and other threads are heard, only then.
const AWAKE_MAX: Duration = Duration::from_millis(1);
/// The core was somebody else's for so long: it is needed.
const AWAY_MAX: Duration = Duration::from_micros(500);
/// Looks are judged when they have taken so long together.
const JUDGED: Duration = Duration::from_millis(1);
/// They must have seen nothing for one in so many parts of it, else there is no sleep to be spared.
const IDLE_PART: u32 = 4;
/// The thread does not look for so long then: twice as long each time, until looks are worth it.
const REST_MIN: Duration = Duration::from_millis(10);
const REST_MAX: Duration = Duration::from_secs(1);

/// What the thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// A server has a call.
    Answer,
    /// None has.
    Call,
}

/// How the thread has waited so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Asleep,
    Looking,
    /// It had looked, and then slept.
    Both,
    /// Many calls were in flight at once.
    InVain,
}

/// How the last waits of a kind went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Habit {
    /// Short ones in a row.
    row: u8,
    /// As many promise the next one.
    enough: u8,
}

impl Habit {
    const NEW: Habit = Habit { row: 0, enough: ENOUGH };

    /// One ended; how long it was says nothing if the thread looked first.
    fn ended(&mut self, way: Way, short: bool) {
        match (way, short) {
            (Way::Asleep, true) => self.row = self.enough.min(self.row + 1),
            (Way::Asleep, false) => self.row = 0,
            (Way::Looking, _) => *self = Habit { row: ENOUGH, enough: ENOUGH },
            (Way::Both, _) => {}
            (Way::InVain, _) => self.missed(),
        }
    }

    /// A look was in vain, or would have been. A server that is a little too slow would have one of
    /// three looked for otherwise.
    fn missed(&mut self) {
        *self = Habit { row: 0, enough: ENOUGH_MAX.min(self.enough * 2) };
    }

    fn promises(self) -> bool {
        self.row >= self.enough
    }
}

/// What the last looks were worth.
#[derive(Default)]
struct Worth {
    looked: Duration,
    idle: Duration,
}

impl Worth {
    /// One has taken so long, and seen nothing for a part of it: whether such looks are worth it,
    /// when that is to be judged.
    fn judge(&mut self, looked: Duration, idle: Duration) -> Option<bool> {
        self.looked += looked;
        self.idle += idle;
        if self.looked < JUDGED {
            return None;
        }
        let Worth { looked, idle } = mem::take(self);
        Some(idle >= looked / IDLE_PART)
    }
}

/// A place for the waker of a task.
type WakerSlot = LocalKey<Cell<Option<Waker>>>;

thread_local! {
    /// The longest look.
    static WINDOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// Calls that servers have.
    static AWAITED: Cell<u32> = const { Cell::new(0) };
    /// Waits so far; when this one began, and how it went.
    static WAITS: Cell<u64> = const { Cell::new(0) };
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static WAY: Cell<Way> = const { Cell::new(Way::Asleep) };
    /// Of waits for answers, and for calls.
    static HABITS: Cell<[Habit; 2]> = const { Cell::new([Habit::NEW; 2]) };
    /// Turns that tasks have had.
    static TURNS: Cell<u64> = const { Cell::new(0) };
    /// Time of looks that saw nothing.
    static IDLE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static LOOKER: Cell<Option<Waker>> = const { Cell::new(None) };
    static ECHO: Cell<Option<Waker>> = const { Cell::new(None) };
}

/// The tasks that look; once it is dropped they do nothing more.
#[must_use]
pub struct Looker(());

impl Drop for Looker {
    fn drop(&mut self) {
        WINDOW.set(Duration::ZERO);
        // Within the loop, which what a thread keeps outlives.
        drop((LOOKER.take(), ECHO.take()));
    }
}

/// Starts busy polling on this thread, once, for looks of at most `window`.
pub fn start(window: Duration) -> Looker {
    set(window);
    drop(monoio::spawn(look()));
    drop(monoio::spawn(echo()));
    Looker(())
}

/// The longest look of this thread from now on; zero for none.
pub fn set(window: Duration) {
    WINDOW.set(window);
}

/// A call goes to a server.
pub fn sent() {
    let awaited = AWAITED.get() + 1;
    AWAITED.set(awaited);
    if awaited == 1 {
        over(Wait::Call);
    } else if awaited == MANY {
        WAY.set(Way::InVain);
    }
}

/// A call that went to a server is over.
pub fn settled() {
    let awaited = AWAITED.get() - 1;
    AWAITED.set(awaited);
    if awaited == 0 {
        over(Wait::Answer);
    }
}

/// Such a wait is over, and the other one begins.
fn over(wait: Wait) {
    let window = WINDOW.get();
    if window.is_zero() {
        return;
    }
    let now = time::now();
    if let Some(began) = BEGAN.replace(Some(now)) {
        // Of a short sleep, to be woken was the larger part.
        let short = now.saturating_duration_since(began) <= 2 * window;
        change(wait, |habit| habit.ended(WAY.get(), short));
    }
    WAY.set(Way::Asleep);
    WAITS.set(WAITS.get() + 1);
    wake(&LOOKER);
}

/// A task has its turn.
pub(super) fn turn() {
    TURNS.set(TURNS.get() + 1);
}

/// Time that this thread has spent on looks that saw nothing.
pub(super) fn idle() -> Duration {
    IDLE.get()
}

fn change(wait: Wait, how: impl FnOnce(&mut Habit)) {
    let mut habits = HABITS.get();
    how(&mut habits[wait as usize]);
    HABITS.set(habits);
}

fn wait() -> Wait {
    if AWAITED.get() > 0 { Wait::Answer } else { Wait::Call }
}

fn is_worth() -> bool {
    AWAITED.get() <= FEW && HABITS.get()[wait() as usize].promises()
}

fn wake(slot: &'static WakerSlot) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}

/// Waits until somebody calls [`wake`] for that slot.
fn woken(slot: &'static WakerSlot) -> impl Future<Output = ()> {
    let mut is_stored = false;
    poll_fn(move |cx| {
        if mem::replace(&mut is_stored, true) {
            return Poll::Ready(());
        }
        slot.set(Some(cx.waker().clone()));
        Poll::Pending
    })
}

/// Has its turn after all that were to have one, and lets [`look`] have the next.
async fn echo() {
    loop {
        woken(&ECHO).await;
        std::thread::yield_now();
        wake(&LOOKER);
    }
}

async fn look() {
    let (mut rested, mut rest) = (Instant::now(), REST_MIN);
    let mut worth = Worth::default();
    loop {
        woken(&LOOKER).await;
        if !is_worth() {
            continue;
        }
        let (woke, before) = (Instant::now(), IDLE.get());
        let (mut last, mut began, mut waits) = (woke, woke, WAITS.get());
        let mut is_needed = false;
        while !is_needed && is_worth() && last.duration_since(woke) < AWAKE_MAX && last >= rested {
            WAY.set(Way::Looking);
            let turns = TURNS.get();
            wake(&ECHO);
            woken(&LOOKER).await;
            let now = Instant::now();
            let away = now.duration_since(mem::replace(&mut last, now));
            if WAITS.get() != waits {
                (began, waits) = (now, WAITS.get());
                continue;
            }
            let is_idle = TURNS.get() == turns;
            if is_idle {
                IDLE.set(IDLE.get() + away);
            }
            is_needed = is_idle && away > AWAY_MAX;
            if !is_needed && now.duration_since(began) > WINDOW.get() {
                change(wait(), Habit::missed);
            }
        }
        if WAY.get() == Way::Looking {
            WAY.set(Way::Both);
        }
        let verdict = match is_needed {
            true => Some(false),
            false => worth.judge(last.duration_since(woke), IDLE.get() - before),
        };
        match verdict {
            Some(true) => rest = REST_MIN,
            Some(false) => {
                rested = last + rest;
                rest = REST_MAX.min(rest * 2);
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{local, spawn, time};
    use std::rc::Rc;

    #[test]
    fn two_short_waits_of_a_kind_promise_a_third() {
        let mut habit = Habit::NEW;
        for (way, short, promises) in [
            (Way::Asleep, true, false),
            (Way::Asleep, true, true),
            (Way::Looking, true, true),
            (Way::Both, false, true),
            (Way::Asleep, false, false),
            (Way::Asleep, true, false),
            (Way::Asleep, false, false),
            (Way::Looking, false, true),
            (Way::InVain, true, false),
        ] {
            habit.ended(way, short);
            assert_eq!(habit.promises(), promises, "{way:?} {short} {habit:?}");
        }
    }

    #[test]
    fn looks_in_vain_become_rare_until_one_sees_something() {
        let mut habit = Habit::NEW;
        let mut needed = || {
            habit.missed();
            (1..).find(|_| {
                habit.ended(Way::Asleep, true);
                habit.promises()
            })
        };
        assert_eq!([needed(), needed(), needed()], [Some(4), Some(8), Some(16)]);
        assert_eq!([needed(), needed(), needed()], [Some(32), Some(64), Some(64)]);
        habit.ended(Way::Looking, true);
        assert_eq!(habit, Habit { row: ENOUGH, enough: ENOUGH });
    }

    #[test]
    fn looks_that_hardly_wait_are_worth_nothing() {
        let us = Duration::from_micros;
        let mut worth = Worth::default();
        for (looked, idle, verdict) in [
            (us(999), us(0), None),
            (us(1), us(200), Some(false)),
            (us(600), us(100), None),
            (us(600), us(250), Some(true)),
            (us(1000), us(250), Some(true)),
            (us(2000), us(499), Some(false)),
        ] {
            assert_eq!(worth.judge(looked, idle), verdict, "{looked:?} {idle:?}");
        }
    }

    const SHORT: Habit = Habit { row: ENOUGH, enough: ENOUGH };

    fn promises(wait: Wait) -> bool {
        HABITS.get()[wait as usize].promises()
    }

    /// Calls of a server that takes `time`, one by one or two at a time, until `done`.
    async fn calls(time: Option<Duration>, together: u32, done: impl Fn() -> bool + 'static) {
        let over = Rc::new(local::Event::new());
        let tell = over.clone();
        spawn("client", async move {
            // No shorter wait than a look: each of these ends within it.
            let mut breath = crate::rt::Breath::new().unwrap();
            while !done() {
                for _ in 0..together {
                    sent();
                }
                match time {
                    Some(time) => time::sleep(time).await,
                    None => breath.take().await,
                }
                for _ in 0..together {
                    settled();
                }
                breath.take().await;
            }
            tell.set();
        });
        over.wait().await;
    }

    /// Waits until it has looked, which may take as long as others want its core.
    async fn looks() {
        let before = idle();
        while idle() == before {
            sent();
            time::sleep(Duration::from_millis(5)).await;
            settled();
        }
    }

    #[test]
    fn after_short_waits_the_thread_looks() {
        everywhere(async || {
            let _looker = start(Duration::from_secs(60));
            calls(None, 1, || promises(Wait::Answer) && promises(Wait::Call)).await;
            // And sleeps all the same once in a while, else this timer would never fire.
            let over = Rc::new(Cell::new(false));
            let seen = over.clone();
            spawn("timer", async move {
                time::sleep(Duration::from_millis(20)).await;
                over.set(true);
            });
            calls(None, 1, move || seen.get()).await;
            looks().await;
        });
    }

    #[test]
    fn long_waits_and_many_calls_let_it_sleep() {
        everywhere(async || {
            let _looker = start(Duration::from_micros(100));
            let left = Cell::new(20);
            let count = move || left.replace(left.get() - 1) == 0;
            calls(Some(Duration::from_millis(2)), 1, count).await;
            assert!(!promises(Wait::Answer));

            HABITS.set([SHORT; 2]);
            let before = idle();
            sent();
            sent();
            time::sleep(Duration::from_millis(5)).await;
            assert_eq!(idle(), before, "two calls are in flight");
            settled();
            settled();
        });
    }

    #[test]
    fn without_a_window_nothing_is_looked_at() {
        everywhere(async || {
            let looker = start(Duration::ZERO);
            HABITS.set([SHORT; 2]);
            sent();
            time::sleep(Duration::from_millis(5)).await;
            settled();
            assert_eq!(idle(), Duration::ZERO);
            set(Duration::from_secs(60));
            looks().await;
            drop(looker);
            let before = idle();
            sent();
            time::sleep(Duration::from_millis(5)).await;
            settled();
            assert_eq!(idle(), before);
        });
    }
}
