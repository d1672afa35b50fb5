//! Owns: what a Retry-After field asks for.
//! Never: waiting.
//! Next: `sse`.
//!
//! RFC 9110 §10.2.3: seconds, or a date, of which the one form that is generated is read (§5.6.7).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wait that the field asks for at `now`, none if its time has passed; `None` = it says nothing.
/// A number beyond all use stands for the longest wait there is, about 136 years.
pub fn retry_after(field: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(field).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u32::MAX).into()));
    }
    let due = UNIX_EPOCH + Duration::from_secs(date(text)?);
    Some(due.duration_since(now).unwrap_or_default())
}

/// Seconds since 1970 of a date such as `Sun, 06 Nov 1994 08:49:37 GMT`. Its weekday is not looked at.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, text) = text.split_once(", ")?;
    let mut parts = text.split(' ');
    let day: u64 = number(parts.next()?, 2)?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year = number(parts.next()?, 4)?;
    let mut clock = parts.next()?.split(':');
    let (hour, minute) = (number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    let second = number(clock.next()?, 2)?;
    if (parts.next(), parts.next(), clock.next()) != (Some("GMT"), None, None)
        || !(1..=31).contains(&day)
        || year < 1970
        // A leap second, as it is counted here, is the next one.
        || (hour > 23 || minute > 59 || second > 60)
    {
        return None;
    }
    // Years that begin in March: a leap day is the last of them.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    // From 1 March of the year 0.
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    let fits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let most = u64::from(u32::MAX);
        for (field, wanted) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999", Some(most)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400 - 784_111_777)),
            ("Wed, 01 Mar 2000 00:00:00 GMT", Some(951_868_800 - 784_111_777)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 24:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
        ] {
            let wait = retry_after(field.as_bytes(), now);
            assert_eq!(wait, wanted.map(Duration::from_secs), "{field}");
        }
        assert!(retry_after(b"Fri, 31 Dec 9999 23:59:59 GMT", now).is_some());
    }
}
