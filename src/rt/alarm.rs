//! Owns: time limits that are moved for every request and strike for few.
//! Never: what becomes of who is late.
//! Next: `local`, waiting for another task.
//!
//! A timer of the runtime takes 640 bytes, for as long as it is armed; a place here takes 36, and to
//! move its limit is a store. One task of the thread sleeps until the earliest of them, and ends when
//! there are none.
//!
//! A waker may be the last that holds its task, and that task may hold alarms: none is dropped while
//! the table is in use.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::time::{self, now};

/// Limits that pass within this strike together.
const GRAIN: Duration = Duration::from_millis(5);

thread_local! {
    static ALARMS: Alarms = const { Alarms::new() };
}

/// The alarms of one thread.
struct Alarms {
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<u32>>,
    /// When the task looks again; `None` = there is no task.
    next: Cell<Option<Instant>>,
    /// Of the task, to look earlier.
    waker: RefCell<Option<Waker>>,
}

#[derive(Default)]
struct Place {
    /// When it strikes; `None` = it is free, or has struck.
    at: Option<Instant>,
    waker: Option<Waker>,
}

/// A time limit that is moved often.
///
/// It keeps its place when the limit moves away, and strikes late by some milliseconds at most.
#[derive(Debug)]
pub struct Alarm {
    at: Instant,
    place: Option<u32>,
}

impl Alarm {
    /// One that has struck until it is set.
    pub fn new() -> Alarm {
        Alarm { at: now(), place: None }
    }

    /// It strikes at `at`, and at no time that was said before.
    pub fn set(&mut self, at: Instant) {
        self.at = at;
    }

    /// Whether it has struck; if not, the task is woken when it does.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.at <= now() {
            return Poll::Ready(());
        }
        ALARMS.with(|alarms| {
            let place = *self.place.get_or_insert_with(|| alarms.take());
            alarms.arm(place, self.at, cx);
        });
        Poll::Pending
    }
}

impl Default for Alarm {
    fn default() -> Alarm {
        Alarm::new()
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // At the end of a thread there may be no table any more.
            let _ = ALARMS.try_with(|alarms| alarms.give_back(place));
        }
    }
}

impl Alarms {
    const fn new() -> Alarms {
        Alarms {
            places: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            next: Cell::new(None),
            waker: RefCell::new(None),
        }
    }

    fn take(&self) -> u32 {
        if let Some(place) = self.free.borrow_mut().pop() {
            return place;
        }
        let mut places = self.places.borrow_mut();
        places.push(Place::default());
        (places.len() - 1) as u32
    }

    fn give_back(&self, place: u32) {
        let old = std::mem::take(&mut self.places.borrow_mut()[place as usize]);
        self.free.borrow_mut().push(place);
        drop(old);
    }

    fn arm(&self, place: u32, at: Instant, cx: &Context<'_>) {
        let old = {
            let mut places = self.places.borrow_mut();
            let place = &mut places[place as usize];
            place.at = Some(at);
            match &place.waker {
                Some(old) if old.will_wake(cx.waker()) => None,
                _ => place.waker.replace(cx.waker().clone()),
            }
        };
        drop(old);
        match self.next.get() {
            None => {
                self.next.set(Some(at));
                super::spawn("alarms", watch());
            }
            Some(next) if at + GRAIN < next => {
                self.next.set(Some(at));
                let waker = self.waker.borrow_mut().take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Some(_) => {}
        }
    }

    /// Wakes those that are due; when the next one is, if there is one.
    fn strike(&self, now: Instant) -> Option<Instant> {
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for place in &mut *self.places.borrow_mut() {
            match place.at {
                Some(at) if at <= now => {
                    place.at = None;
                    due.extend(place.waker.take());
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        due.into_iter().for_each(Waker::wake);
        next
    }
}

/// A loop begins on this thread. Tasks of an earlier one are never polled again, and must not be
/// woken either: what they left here is forgotten as they are.
pub(super) fn begin() {
    ALARMS.with(|alarms| {
        let watcher = alarms.waker.borrow_mut().take();
        let places = alarms.places.borrow_mut().iter_mut().map(std::mem::take).collect::<Vec<_>>();
        alarms.next.set(None);
        std::mem::forget((watcher, places));
    });
}

/// The task of a thread. Should it panic, the next alarm that is armed starts another one.
async fn watch() {
    struct Over;
    impl Drop for Over {
        fn drop(&mut self) {
            let _ = ALARMS.try_with(|alarms| alarms.next.set(None));
        }
    }
    let _over = Over;
    while let Some(next) = ALARMS.with(|alarms| alarms.next.get()) {
        let left = next.saturating_duration_since(time::exact());
        let earlier = poll_fn(|cx| {
            ALARMS.with(|alarms| {
                if alarms.next.get() != Some(next) {
                    return Poll::Ready(());
                }
                *alarms.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
        });
        if time::timeout(left, earlier).await.is_ok() {
            continue;
        }
        ALARMS.with(|alarms| {
            // Who is woken has its turn later, and may want to be told earlier than that.
            let now = time::exact();
            let next = alarms.strike(now);
            alarms.next.set(next.map(|next| next.max(now + GRAIN)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{Driver, Either, race};

    async fn struck(alarm: &mut Alarm) {
        poll_fn(|cx| alarm.poll(cx)).await;
    }

    #[test]
    fn it_strikes_when_it_is_set_to_and_not_before() {
        everywhere(async || {
            let begin = Instant::now();
            let (short, long) = (Duration::from_millis(30), Duration::from_millis(90));
            let (mut one, mut other) = (Alarm::new(), Alarm::new());
            one.set(begin + Duration::from_secs(3600));
            // Set later, strikes earlier.
            let early = async {
                time::sleep(Duration::from_millis(5)).await;
                other.set(begin + short);
                struck(&mut other).await;
                assert!(begin.elapsed() >= short);
            };
            assert!(matches!(race(struck(&mut one), early).await, Either::Right(())));
            one.set(begin + long);
            struck(&mut one).await;
            assert!(begin.elapsed() >= long);
            // It has struck, and strikes once more when it is set once more.
            struck(&mut one).await;
            one.set(Instant::now() + short);
            struck(&mut one).await;
            assert!(begin.elapsed() >= long + short);
        });
    }

    #[test]
    fn one_that_is_moved_away_does_not_strike() {
        everywhere(async || {
            let mut alarm = Alarm::new();
            for _ in 0..5 {
                // Armed and moved in one turn, in which it is one time.
                alarm.set(now() + Duration::from_millis(20));
                let armed = poll_fn(|cx| Poll::Ready(alarm.poll(cx).is_pending()));
                assert!(armed.await);
                alarm.set(now() + Duration::from_secs(3600));
                let wait = time::sleep(Duration::from_millis(40));
                let first = race(struck(&mut alarm), wait).await;
                assert!(matches!(first, Either::Right(())));
            }
        });
    }

    #[test]
    fn what_an_earlier_loop_left_is_no_matter() {
        for driver in [Driver::Epoll, Driver::TunedRing] {
            if Driver::choose(Some(driver)).is_err() {
                continue;
            }
            for _ in 0..3 {
                let run = driver.run(async {
                    // It waits when the loop ends.
                    crate::rt::spawn("forgotten", async {
                        let mut alarm = Alarm::new();
                        alarm.set(Instant::now() + Duration::from_millis(20));
                        struck(&mut alarm).await;
                    });
                    let mut alarm = Alarm::new();
                    alarm.set(Instant::now() + Duration::from_millis(10));
                    struck(&mut alarm).await;
                });
                run.unwrap();
            }
        }
    }

    #[test]
    fn the_last_waker_of_a_task_with_an_alarm_may_go() {
        struct Holder(#[expect(dead_code, reason = "dropped with the waker")] Alarm);
        impl std::task::Wake for Holder {
            fn wake(self: std::sync::Arc<Holder>) {}
        }
        everywhere(async || {
            let armed = |waker: &Waker| {
                let mut alarm = Alarm::new();
                alarm.set(Instant::now() + Duration::from_secs(60));
                assert!(alarm.poll(&mut Context::from_waker(waker)).is_pending());
                alarm
            };
            let holder = || Waker::from(std::sync::Arc::new(Holder(armed(Waker::noop()))));
            // Only the table holds each of these wakers.
            let alarm = armed(&holder());
            drop(alarm);
            let mut alarm = armed(&holder());
            assert!(alarm.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        });
    }

    #[test]
    fn places_are_given_back_and_the_task_ends() {
        everywhere(async || {
            for _ in 0..3 {
                let mut many: Vec<Alarm> = (0..100).map(|_| Alarm::new()).collect();
                let at = Instant::now() + Duration::from_millis(10);
                for alarm in &mut many {
                    alarm.set(at);
                    assert!(poll_fn(|cx| Poll::Ready(alarm.poll(cx))).await.is_pending());
                }
                drop(many.split_off(1));
                struck(&mut many[0]).await;
                drop(many);
                time::sleep(Duration::from_millis(40)).await;
                ALARMS.with(|alarms| {
                    assert_eq!(alarms.places.borrow().len(), 100);
                    assert_eq!(alarms.free.borrow().len(), 100);
                    assert!(alarms.next.get().is_none(), "the task goes on for nobody");
                });
            }
        });
    }
}
