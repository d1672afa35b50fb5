//! Owns: a call that more than one backend may answer: who is asked, in which order, and when the
//! next one is; the lists of a backend that has not been up yet, as its failovers have them.
//! Never: whose turn it is (`middleware::route`), the rules of a backend (`exchange`), retries.
//! Next: `around`, what stands around a call.
//!
//! The next one is asked only if the last one surely did not execute the call: it is not well, it
//! refused, or was not reached. What a backend has begun is its own, whatever comes of it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::flight::Lead;
use super::handle::CallHandle;
use super::{Backends, Call, Kept, Replies, Reply};
use crate::error::{Error, Kind, Result};
use crate::mcp::catalog::Slice;
use crate::middleware::around::Verdict;
use crate::middleware::retry::Outcome;
use crate::middleware::reuse::Reusable;
use crate::middleware::route::Route;
use crate::plan::BackendId;

/// A call as one of the backends is to get it.
pub enum Prepared {
    /// To be sent.
    Call(Call, Option<(Box<Reusable>, Lead)>),
    /// Answered from what is kept for that backend.
    Held(Vec<u8>),
}

/// Makes the call for one of the backends; an error = its rules refuse it.
pub type Prepare = Box<dyn FnMut(BackendId) -> Pin<Box<dyn Future<Output = Result<Prepared>>>>>;

/// A call that more than one backend may answer.
pub(super) struct StandIn {
    backends: Rc<Backends>,
    /// Of the whole call.
    handle: Rc<CallHandle>,
    /// The one that the client called.
    own: BackendId,
    /// Those that have not been asked.
    left: VecDeque<BackendId>,
    prepare: Prepare,
    /// The one that is asked.
    backend: BackendId,
    /// Its replies.
    replies: Replies,
    /// What is told if nobody answers: rather the word of the one that was called.
    error: Option<Error>,
}

/// Asks the backends that may answer a call of `own`, the canary whose turn it is first; `alone`: and
/// nobody else.
///
/// # Errors
/// As for [`Backends::call`]; if none takes it, the error of `own`.
pub(super) async fn call(
    backends: &Rc<Backends>,
    own: BackendId,
    first: Option<BackendId>,
    alone: bool,
    handle: &Rc<CallHandle>,
    prepare: Prepare,
) -> Result<Replies> {
    let entry = backends.entry_of(own)?;
    if !entry.settled.is_set() {
        // In its first start it is neither up nor down; that ends within its own deadline.
        let waited = handle.watch(Box::pin(entry.settled.wait())).await;
        waited.map_err(|_| Error::new(Kind::Cancelled).context(entry.name().to_owned()))?;
    }
    let none = Replies::ready(Vec::new(), own);
    let mut call = StandIn {
        backends: backends.clone(),
        handle: handle.clone(),
        own,
        left: match alone {
            true => first.into_iter().collect(),
            false => order(backends, &entry, first),
        },
        prepare,
        backend: own,
        replies: none,
        error: None,
    };
    call.ask().await?;
    Ok(Replies::of(Kept::StandIn(Box::new(call))))
}

/// Who is asked, one behind the other.
fn order(backends: &Backends, own: &Entry, canary: Option<BackendId>) -> VecDeque<BackendId> {
    let failovers = failovers(backends, own);
    let those = |wanted: &dyn Fn(&Entry) -> bool| -> Vec<BackendId> {
        failovers.iter().filter(|entry| wanted(entry)).map(|entry| entry.id).collect()
    };
    let mut order: VecDeque<BackendId> = canary.into_iter().collect();
    let well = backends.is_well(own);
    if well {
        order.push_back(own.id);
    }
    order.extend(those(&|entry| entry.settled.is_set() && backends.is_well(entry)));
    if !well {
        order.extend(those(&|entry| !entry.settled.is_set()));
        // It may be back, and its own word is the right one if nobody else answers.
        order.push_back(own.id);
    }
    order
}

impl StandIn {
    /// See [`Replies::backend`].
    pub(super) fn backend(&self) -> BackendId {
        self.replies.backend()
    }

    /// See [`Replies::wait`].
    pub(super) fn wait(&self) -> Option<Duration> {
        self.replies.wait()
    }

    /// See [`Replies::next`].
    pub(super) async fn next(&mut self) -> Result<Reply> {
        loop {
            match Box::pin(self.replies.next()).await {
                Err(error) if self.is_unsent(&error) => {
                    self.keep(error);
                    self.ask().await?;
                }
                reply => return reply,
            }
        }
    }

    /// See [`Replies::chunk`].
    pub(super) async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        Box::pin(self.replies.chunk()).await
    }

    /// Asks one after the other until one takes the call.
    async fn ask(&mut self) -> Result<()> {
        while let Some(backend) = self.left.pop_front() {
            self.backend = backend;
            let error = match self.begin(backend).await {
                Ok(replies) => {
                    self.replies = replies;
                    return Ok(());
                }
                Err(error) => error,
            };
            if !self.is_unsent(&error) {
                return Err(error);
            }
            self.keep(error);
        }
        Err(self.error.take().unwrap_or_else(|| Error::new(Kind::Internal)))
    }

    async fn begin(&mut self, backend: BackendId) -> Result<Replies> {
        let prepared = match (self.prepare)(backend).await {
            Ok(prepared) => prepared,
            // Not meant for that one: as if it were not there.
            Err(error) if backend != self.own => {
                return Err(Error::new(Kind::Resting).cause(error));
            }
            Err(error) => return Err(error),
        };
        match prepared {
            Prepared::Held(answer) => Ok(Replies::ready(answer, backend)),
            Prepared::Call(call, None) => Box::pin(self.backends.call(call)).await,
            Prepared::Call(call, Some((reusable, lead))) => {
                Box::pin(self.backends.call_reusing(call, reusable, lead)).await
            }
        }
    }

    /// Whether the one that is asked surely did not execute the call, and somebody else may.
    fn is_unsent(&self, error: &Error) -> bool {
        let unsent = match error.kind() {
            Kind::Resting | Kind::Busy => true,
            // A limit of the one that was called is meant; that of another keeps nobody away.
            Kind::RateLimited | Kind::Crowded => self.backend != self.own,
            _ => Verdict::of_error(error).outcome == Outcome::Unsent,
        };
        unsent && !self.handle.is_cancelled()
    }

    fn keep(&mut self, error: Error) {
        tracing::debug!(%error, "another backend is asked");
        if self.error.is_none() || self.backend == self.own {
            self.error = Some(error);
        }
    }
}

/// The backends that stand in for one, the first one first.
fn failovers(backends: &Backends, entry: &Entry) -> Vec<Rc<Entry>> {
    let route = entry.plan.around.route.as_ref();
    let ids = route.map_or(&[][..], |route| &route.failovers);
    ids.iter().filter_map(|id| backends.entry(*id)).collect()
}

/// What failovers offer in place of a backend of which nothing is known, under its names and rules.
pub(super) fn offered(backends: &Backends, entry: &Entry) -> Option<Arc<Slice>> {
    failovers(backends, entry).iter().find_map(|failover| {
        let slice = failover.slice.borrow().clone()?;
        match slice.shaped(&entry.plan) {
            Ok(slice) => Some(Arc::new(slice)),
            Err(error) => {
                tracing::warn!(backend = failover.name(), %error, "its lists cannot stand in");
                None
            }
        }
    })
}

/// Whose first start is worth waiting for, as a backend's own lists are not known.
pub(super) fn awaited(backends: &Backends, entry: &Entry) -> Vec<Rc<Entry>> {
    match entry.slice.borrow().is_none() {
        true => failovers(backends, entry),
        false => Vec::new(),
    }
}

/// A backend offers something else: perhaps in place of another one.
pub(super) fn changed(backends: &Backends, entry: &Entry) {
    for other in &*backends.entries() {
        let route = other.plan.around.route.as_ref();
        if route.is_some_and(|route| route.failovers.contains(&entry.id))
            && other.slice.borrow().is_none()
        {
            (backends.on_slice)(other.id, offered(backends, other));
        }
    }
}

impl Backends {
    /// Sends a call of a backend for which others may stand in; `prepare` makes it for each of them
    /// that is asked: `first` before all, if it is given, and with `alone` nobody else. A drop
    /// abandons it.
    ///
    /// # Errors
    /// As for [`Backends::call`].
    pub async fn call_any(
        self: &Rc<Self>,
        backend: BackendId,
        first: Option<BackendId>,
        alone: bool,
        handle: &Rc<CallHandle>,
        prepare: Prepare,
    ) -> Result<Replies> {
        call(self, backend, first, alone, handle, prepare).await
    }

    /// The canary whose turn a call of a backend is, if that one can be expected to take it.
    pub fn canary(&self, route: &Route) -> Option<BackendId> {
        let id = route.next()?;
        let entry = self.entry(id)?;
        (entry.settled.is_set() && self.is_well(&entry)).then_some(id)
    }

    /// Whether a backend can be expected to take a call.
    fn is_well(&self, entry: &Entry) -> bool {
        let (around, now) = (&entry.plan.around, self.board.elapsed());
        !self.is_down(entry)
            && around.breaker.as_ref().is_none_or(|breaker| breaker.would_refuse(now).is_none())
            && around.outlier.as_ref().is_none_or(|outlier| !outlier.is_ejected(now))
    }
}
