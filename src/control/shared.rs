//! Owns: what the control thread and those who wait for it share.
//! Never: a worker's state.
//! Next: `life`, the thread.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::config::ProxyConfig;
use super::entrance::Entrance;
use super::reload::{Applied, NotApplied, Reloads, Wanted};
use super::{BackendStatus, ProxyError};
use crate::backend::health::State as Health;
use crate::telemetry::lines::Orders;
use crate::world::Counts;

/// What the control thread and those who wait for it share.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    /// What the writer of log lines is told.
    pub(super) lines: Arc<Orders>,
    /// See [`Handle::on_reload`].
    pub(super) on_reload: OnceLock<Hear>,
    /// Has the control thread look at once for what is wanted of it.
    pub(super) wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Hears of configurations.
pub(super) type Hear = Box<dyn Fn(&ProxyConfig) + Send + Sync>;

/// A reload that somebody waits for.
pub(super) struct Order {
    /// `None` once it is under way.
    pub(super) wanted: Mutex<Option<Wanted>>,
    pub(super) outcome: OnceLock<Result<Applied, NotApplied>>,
}

impl Order {
    pub(super) fn outcome(&self, state: &State) -> Option<Result<Applied, NotApplied>> {
        let outcome = self.outcome.get().cloned();
        outcome.or_else(|| state.ended().map(|_| Err(ended())))
    }
}

pub(super) fn ended() -> NotApplied {
    NotApplied::Failed("the proxy has ended".to_owned())
}

#[derive(Default)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) addr: Option<SocketAddr>,
    pub(super) tls: bool,
    pub(super) shutdown_wanted: bool,
    pub(super) backends: Vec<BackendStatus>,
    pub(super) counts: Option<Arc<Counts>>,
    pub(super) entrance: Option<Arc<Entrance>>,
    /// Reloads that are wanted, in their order.
    pub(super) orders: VecDeque<Arc<Order>>,
    pub(super) reloads: Reloads,
    /// Of futures that wait for a change.
    pub(super) wakers: Vec<Waker>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Phase {
    #[default]
    Starting,
    Serving,
    Ended(Result<(), ProxyError>),
}

impl State {
    pub(super) fn started(&self) -> Option<Result<(), ProxyError>> {
        match &self.phase {
            Phase::Starting => None,
            Phase::Serving => Some(Ok(())),
            Phase::Ended(outcome) => Some(outcome.clone()),
        }
    }

    pub(super) fn ended(&self) -> Option<Result<(), ProxyError>> {
        match &self.phase {
            Phase::Ended(outcome) => Some(outcome.clone()),
            _ => None,
        }
    }

    pub(super) fn settled(&self) -> Option<()> {
        let starting = self.backends.iter().any(|backend| backend.state == Health::Starting);
        (self.ended().is_some() || (self.started().is_some() && !starting)).then_some(())
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    pub(super) fn on_applied(&self, config: &ProxyConfig) {
        if let Some(hear) = self.on_reload.get() {
            hear(config);
        }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Resolves when `look` finds something. Dropping it leaves a waker behind until the next
    /// change.
    pub(super) fn until<T>(&self, look: impl Fn(&State) -> Option<T>) -> impl Future<Output = T> {
        std::future::poll_fn(move |context: &mut Context<'_>| {
            let mut state = self.lock();
            if let Some(found) = look(&state) {
                return Poll::Ready(found);
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Blocks until `look` finds something; `None` if it does not within `limit`.
    pub(super) fn wait<T>(
        &self,
        limit: Option<Duration>,
        look: impl Fn(&State) -> Option<T>,
    ) -> Option<T> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// Reports an end that the control thread itself could not.
pub(super) struct EndGuard(pub(super) Arc<Shared>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        if self.0.lock().ended().is_none() {
            let error = ProxyError::Worker("the control thread has panicked".to_owned());
            self.0.change(|state| state.phase = Phase::Ended(Err(error)));
        }
    }
}
