//! Owns: a few helper threads for what waits or takes long: name lookups, slow signatures of tokens.
//! Never: anything that waits for a worker; what a worker does in less time than it takes to ask.
//! Next: `child`, whose processes are born on a thread of their own.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::bell;
use super::spawn::text;
use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static POOL: Pool = Pool {
    state: Mutex::new(State { jobs: VecDeque::new(), threads: 0, idle: 0 }),
    work: Condvar::new(),
};

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&'static self, job: Job) -> io::Result<()> {
        let mut state = self.lock();
        if state.jobs.len() >= limits::BLOCKING_QUEUE_MAX {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "helper threads are busy"));
        }
        if state.idle <= state.jobs.len() && state.threads < limits::BLOCKING_THREADS {
            let thread = std::thread::Builder::new().name("helper".to_owned());
            match thread.spawn(|| self.serve()) {
                Ok(_) => state.threads += 1,
                // The threads that there are will get to it.
                Err(_) if state.threads > 0 => {}
                Err(e) => return Err(e),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

/// Runs `f` on a helper thread. Dropping the future drops only its result once `f` is queued.
///
/// # Errors
/// `WouldBlock` when [`limits::BLOCKING_QUEUE_MAX`] calls wait already; those of starting a thread
/// and of eventfd; `Other` when `f` panicked.
pub async fn run<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (reply, replied) = bell::reply()?;
    POOL.push(Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(f))
            .map_err(|payload| io::Error::other(format!("helper panicked: {}", text(&*payload))));
        reply.send(result);
    }))?;
    replied.get().await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::testing::everywhere;
    use crate::rt::{join, time};
    use std::time::Duration;

    #[test]
    fn helpers_answer_while_the_loop_goes_on() {
        everywhere(async || {
            let slow = run(|| {
                std::thread::sleep(Duration::from_millis(20));
                std::thread::current().name().map(str::to_owned)
            });
            let ticks = async {
                for _ in 0..5 {
                    time::sleep(Duration::from_millis(1)).await;
                }
            };
            let (name, ()) = join(slow, ticks).await;
            assert_eq!(name.unwrap().as_deref(), Some("helper"));
            for n in 0..100 {
                assert_eq!(run(move || n + 1).await.unwrap(), n + 1);
            }
        });
    }

    #[test]
    fn a_panic_is_an_error_and_costs_no_helper() {
        everywhere(async || {
            for _ in 0..2 * limits::BLOCKING_THREADS {
                let error = run(|| panic!("expected by this test")).await.unwrap_err();
                assert!(error.to_string().contains("expected by this test"), "{error}");
            }
            assert_eq!(run(|| 1).await.unwrap(), 1);
        });
    }

    #[test]
    fn a_dropped_call_harms_nobody() {
        everywhere(async || {
            let slow = run(|| std::thread::sleep(Duration::from_millis(20)));
            assert!(time::timeout(Duration::from_millis(1), slow).await.is_err());
            assert_eq!(run(|| 2).await.unwrap(), 2);
        });
    }
}
