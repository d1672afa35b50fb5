//! Owns: the Date line of answers.
//! Never: another clock's business.
//! Next: `moving`, a connection between two threads.

use crate::rt;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// `Date: Tue, 24 Nov 2026 18:00:00 GMT` (RFC 9110 §5.6.7).
pub(super) const DATE_LINE_BYTES: usize = 37;

/// Appends a Date line, formatted once a second; the calendar is looked at no more often.
pub(super) fn date_line(out: &mut Vec<u8>) {
    use std::cell::Cell;
    thread_local! {
        /// The line, and until when it is right.
        static DATE: Cell<(Option<Instant>, [u8; DATE_LINE_BYTES])> =
            const { Cell::new((None, [0; DATE_LINE_BYTES])) };
    }
    let now = rt::time::now();
    let (until, mut line) = DATE.get();
    if until.is_none_or(|until| now >= until) {
        let today =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        line.copy_from_slice(date(today.as_secs()).as_bytes());
        let left = Duration::from_secs(1) - Duration::from_nanos(today.subsec_nanos().into());
        DATE.set((now.checked_add(left), line));
    }
    out.extend_from_slice(&line);
}

/// The civil date of a Unix time, after Howard Hinnant's "chrono-compatible low-level date
/// algorithms": years begin in March, so that the leap day is the last.
pub(super) fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan", "Feb"];
    // The field has four digits for the year.
    let seconds = seconds.min(253_402_300_799);
    let days = seconds / 86_400;
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era + u64::from(month >= 10);
    let mut line = String::with_capacity(DATE_LINE_BYTES);
    let _ = write!(
        line,
        "Date: {}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT\r\n",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    line
}
