//! Owns: what is seen of the proxy from outside: metrics, access and audit lines, spans; and the
//! desk at which a worker asks the control plane.
//! Never: a label, line or span that is not bounded; a wait or a lock on a worker.
//! Next: `clock`.

pub mod clock;
pub mod desk;
pub mod export;
pub mod lines;
pub mod metrics;
pub mod otlp;
pub mod prometheus;
pub mod trace;

use crate::rt::outlet::Outlet;
use desk::Desk;
use metrics::Meter;

/// What one worker tells, and to whom.
pub struct Kit {
    /// Its counters.
    pub meter: Meter,
    /// Where it asks.
    pub desk: Desk,
    /// Where its lines and spans go at first.
    pub outlets: Switch,
}

/// Where the lines of a worker go; `None` = nobody wants any.
pub type Lines = Option<Outlet<lines::Line>>;
/// Where its spans go; `None` = nobody traces.
pub type Spans = Option<Outlet<Box<trace::Report>>>;

/// Where lines and spans of a worker go from now on; `None` = where they went before.
#[derive(Default)]
pub struct Switch {
    /// Lines.
    pub lines: Option<Lines>,
    /// Spans.
    pub spans: Option<Spans>,
}
