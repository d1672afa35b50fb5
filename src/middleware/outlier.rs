//! Owns: `[backends.outlier_detection]`: a backend that fails several times in a row is ejected.
//! Never: a clock, a lock; which outcomes are failures (`backend::around`).
//! Next: `hedge`.
//!
//! ```toml
//! [backends.outlier_detection]
//! consecutive_errors = 5        # a success ends the streak
//! base_ejection_seconds = 30    # times the number of recent ejections, at most ten times
//! interval_seconds = 10         # returns are granted at its multiples
//! max_ejection_percent = 50     # of all backends with this table; one always may be
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

/// The settings of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row after which it is ejected.
    pub consecutive_errors: u32,
    /// How long it is ejected the first time.
    pub base: Duration,
    /// Returns are granted at multiples of it.
    pub interval: Duration,
    /// Share of the backends of the ward that may be ejected at once.
    pub max_percent: u32,
}

/// All backends with outlier detection, as all workers see them.
#[derive(Debug, Default)]
pub struct Ward {
    /// Swapped by a reload; read when somebody is to be ejected.
    beds: ArcSwap<Vec<Arc<Bed>>>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Bed {
    /// Failures in a row.
    streak: AtomicU32,
    /// Microseconds until which it is ejected; 0 = it is in service.
    until: AtomicU64,
    /// Ejections, upper half; lower half: milliseconds / 100 when it last returned or decayed.
    recent: AtomicU64,
}

/// Multiples of the base time at most.
const FACTOR_MAX: u32 = 10;

impl Ward {
    /// Of these backends: theirs is this ward from now on.
    pub fn of<'a>(all: impl Iterator<Item = &'a mut Outlier>) -> Arc<Ward> {
        let ward = Arc::<Ward>::default();
        let home = |outlier: &'a mut Outlier| {
            outlier.ward = ward.clone();
            outlier.bed.clone()
        };
        ward.beds.store(Arc::new(all.map(home).collect()));
        ward
    }

    /// From now on its backends are these, and no others.
    pub fn admit_all<'a>(&self, all: impl Iterator<Item = &'a Outlier>) {
        self.beds.store(Arc::new(all.map(|outlier| outlier.bed.clone()).collect()));
    }
}

/// Outlier detection of one backend.
#[derive(Clone, Debug)]
pub struct Outlier {
    settings: Settings,
    ward: Arc<Ward>,
    bed: Arc<Bed>,
    /// How often the backend of this name was ejected, under whatever settings.
    ejections: Arc<AtomicU64>,
}

impl PartialEq for Outlier {
    fn eq(&self, other: &Outlier) -> bool {
        self.settings == other.settings
    }
}

impl Outlier {
    /// Of a backend in no ward yet.
    pub fn new(settings: Settings) -> Outlier {
        let (ward, bed, ejections) = Default::default();
        Outlier { settings, ward, bed, ejections }
    }

    /// The ward that it is in.
    pub fn ward(&self) -> &Arc<Ward> {
        &self.ward
    }

    /// Moves into the ward of others.
    pub fn move_to(&mut self, ward: &Arc<Ward>) {
        self.ward = ward.clone();
    }

    /// Counts on where one stopped that a backend of the same name had before.
    pub fn count_on_with(&mut self, before: &Outlier) {
        self.ejections = before.ejections.clone();
    }

    fn bed(&self) -> &Bed {
        &self.bed
    }

    /// Asks for one call at `now`, a time since any fixed moment that is the same for all workers.
    ///
    /// # Errors
    /// It is ejected: for how long.
    pub fn admit(&self, now: Duration) -> Result<(), Duration> {
        let until = self.bed().until.load(Ordering::SeqCst);
        let now = now.as_micros() as u64;
        if now < until { Err(Duration::from_micros(until - now)) } else { Ok(()) }
    }

    /// Whether it is ejected at `now`.
    pub fn is_ejected(&self, now: Duration) -> bool {
        self.admit(now).is_err()
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// A call ended well.
    pub fn succeeded(&self) {
        // Read first: the line stays shared while all is well.
        if self.bed().streak.load(Ordering::Relaxed) != 0 {
            self.bed().streak.store(0, Ordering::SeqCst);
        }
    }

    /// A call failed at `now`. The time for which that ejected the backend.
    pub fn failed(&self, now: Duration) -> Option<Duration> {
        let bed = self.bed();
        let streak = bed.streak.fetch_add(1, Ordering::SeqCst) + 1;
        if streak < self.settings.consecutive_errors || self.is_ejected(now) {
            return None;
        }
        let micros = now.as_micros() as u64;
        let seen = bed.until.load(Ordering::SeqCst);
        if micros < seen {
            return None;
        }
        let recent = self.recent(now, seen);
        let factor = (recent + 1).min(FACTOR_MAX);
        let interval = (self.settings.interval.as_micros() as u64).max(1);
        let end = micros + (self.settings.base * factor).as_micros() as u64;
        let end = end.div_ceil(interval) * interval;
        // Claimed first, then counted: of two that are ejected at once, both see both.
        if bed.until.compare_exchange(seen, end, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return None;
        }
        let beds = self.ward.beds.load();
        let ejected = beds.iter().filter(|bed| bed.until.load(Ordering::SeqCst) > micros).count();
        let percent = self.settings.max_percent as usize;
        let allowed = (beds.len() * percent / 100).max(usize::from(percent > 0));
        if ejected > allowed {
            let _ = bed.until.compare_exchange(end, seen, Ordering::SeqCst, Ordering::SeqCst);
            return None;
        }
        bed.recent.store(u64::from(recent) + 1, Ordering::SeqCst);
        bed.streak.store(0, Ordering::SeqCst);
        self.ejections.fetch_add(1, Ordering::Relaxed);
        Some(Duration::from_micros(end - micros))
    }

    /// Recent ejections: one less for every interval in service since the last return.
    fn recent(&self, now: Duration, returned: u64) -> u32 {
        let count = self.bed().recent.load(Ordering::SeqCst) as u32;
        let served = now.saturating_sub(Duration::from_micros(returned));
        let intervals = served.as_micros() / self.settings.interval.as_micros().max(1);
        count.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::Dice;

    const SETTINGS: Settings = Settings {
        consecutive_errors: 5,
        base: Duration::from_secs(30),
        interval: Duration::from_secs(10),
        max_percent: 50,
    };
    const S: Duration = Duration::from_secs(1);

    fn ward(settings: Settings, backends: usize) -> Vec<Outlier> {
        let mut all: Vec<Outlier> = (0..backends).map(|_| Outlier::new(settings)).collect();
        Ward::of(all.iter_mut());
        all
    }

    #[test]
    fn a_ward_whose_backends_change_counts_those_that_are_there() {
        let mut all = ward(SETTINGS, 2);
        fail(&all[0], 5, S);
        assert!(all[0].is_ejected(S));
        assert_eq!(fail(&all[1], 5, S), None, "one of two is ejected already");
        // Two more come.
        let shared = all[0].ward().clone();
        for _ in 0..2 {
            let mut new = Outlier::new(SETTINGS);
            new.move_to(&shared);
            all.push(new);
        }
        shared.admit_all(all.iter());
        assert!(all[0].is_ejected(S), "what was ejected stays so");
        assert!(fail(&all[1], 1, S).is_some());
        assert_eq!(fail(&all[3], 9, S), None);
    }

    fn fail(outlier: &Outlier, times: u32, now: Duration) -> Option<Duration> {
        (0..times).filter_map(|_| outlier.failed(now)).next_back()
    }

    #[test]
    fn a_streak_ejects_and_a_success_ends_it() {
        let outlier = ward(SETTINGS, 1).remove(0);
        assert_eq!(fail(&outlier, 4, S), None);
        outlier.succeeded();
        assert_eq!(fail(&outlier, 4, S), None);
        // At 31 seconds the return is due, at 40 it is granted.
        assert_eq!(fail(&outlier, 1, S), Some(S * 39));
        assert_eq!(outlier.admit(S * 10), Err(S * 30));
        assert!(outlier.admit(S * 40).is_ok());
    }

    #[test]
    fn ejections_grow_and_decay() {
        let settings = Settings { interval: S, ..SETTINGS };
        let outlier = ward(settings, 1).remove(0);
        let mut now = Duration::ZERO;
        let mut times = Vec::new();
        for _ in 0..12 {
            let time = fail(&outlier, 5, now).unwrap();
            times.push(time.as_secs());
            now += time;
        }
        assert_eq!(times, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
        // In service for eleven intervals: eleven of twelve are forgotten.
        assert_eq!(fail(&outlier, 5, now + S * 11), Some(S * 60));
    }

    #[test]
    fn the_percentage_is_held_and_one_may_always_go() {
        for (backends, percent, most) in
            [(1, 50, 1), (4, 50, 2), (5, 50, 2), (3, 10, 1), (3, 0, 0), (4, 100, 4)]
        {
            let all = ward(Settings { max_percent: percent, ..SETTINGS }, backends);
            for outlier in &all {
                fail(outlier, 20, S);
            }
            let ejected = all.iter().filter(|outlier| outlier.is_ejected(S)).count();
            assert_eq!(ejected, most, "{backends} {percent}");
        }
    }

    #[test]
    fn hours_of_chance_never_eject_too_many() {
        let mut dice = Dice(3);
        let all = ward(SETTINGS, 6);
        let mut now = S;
        let mut ejections = 0;
        for _ in 0..100_000 {
            now += Duration::from_millis(dice.below(500));
            let one = &all[dice.below(6) as usize];
            if one.is_ejected(now) {
                continue;
            }
            match dice.below(10) {
                0 => one.succeeded(),
                _ => ejections += usize::from(one.failed(now).is_some()),
            }
            let out = all.iter().filter(|outlier| outlier.is_ejected(now)).count();
            assert!(out <= 3);
        }
        assert!(ejections > 100, "{ejections}");
    }
}
