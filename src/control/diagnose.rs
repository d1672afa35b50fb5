//! Owns: what is wrong with a configuration and where: places, the report, the nearest valid key.
//! Never: the decision that something is wrong (`config`, `import`, `compile`).
//! Next: `config`, which reads the file.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// Counted from 1; 0 = the file as a whole.
    pub line: u32,
    /// Counted from 1, in characters.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            _ => write!(f, "{}:{}:{}", self.file, self.line, self.column),
        }
    }
}

/// One fault or warning, shown as `file:line:column: key.path: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where.
    pub place: Place,
    /// The key, such as `backends[0].url`; empty for the file as a whole.
    pub path: String,
    /// What was found and what is accepted; never a secret.
    pub message: String,
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that was found wrong with a configuration, in the order of the file.
///
/// Shown with one fault a line, without the warnings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Reasons not to run.
    pub faults: Vec<Diagnosis>,
    /// What runs but deserves a look.
    pub warnings: Vec<Diagnosis>,
    /// Lines that could not be understood: what was made of them is not judged.
    broken: Vec<Place>,
    /// Other files that the faulty one names: what is wrong may be mended there.
    named: Vec<PathBuf>,
}

impl Report {
    /// Whether nothing stands in the way of running.
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty()
    }

    /// Notes the other files that this is about.
    pub(super) fn names(&mut self, files: Vec<PathBuf>) {
        self.named = files;
    }

    /// Those files.
    pub(super) fn named(&self) -> &[PathBuf] {
        &self.named
    }

    /// Notes a line that cannot be understood.
    pub(super) fn broken(&mut self, place: Place) {
        self.broken.push(place);
    }

    /// Whether some line could not be understood.
    pub(super) fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// Adds a fault; of several for one place and key the first is kept, as the others follow
    /// from it.
    pub(super) fn fault(&mut self, place: Place, path: &str, message: impl Into<String>) {
        let same_line = |other: &Place| other.file == place.file && other.line == place.line;
        let is_syntax = path.is_empty();
        // What stands nowhere may be what could not be understood.
        let is_nowhere = place.line == 0 && self.is_broken();
        if !is_syntax && (is_nowhere || self.broken.iter().any(same_line)) {
            return;
        }
        if !self.faults.iter().any(|known| known.place == place && known.path == path) {
            let message = one_line(&message.into());
            self.faults.push(Diagnosis { place, path: path.to_owned(), message });
        }
    }

    /// Adds a warning.
    pub(super) fn warning(&mut self, place: Place, path: &str, message: impl Into<String>) {
        let message = one_line(&message.into());
        self.warnings.push(Diagnosis { place, path: path.to_owned(), message });
    }

    /// Whether a fault is known for this key, for something inside it, or for a table around it.
    pub(super) fn blames(&self, path: &str) -> bool {
        let inside = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || starts_inner(rest))
        };
        let known = self.faults.iter().filter(|fault| !fault.path.is_empty());
        known.into_iter().any(|fault| inside(&fault.path, path) || inside(path, &fault.path))
    }

    /// Puts everything into the order of the file.
    pub(super) fn sort(&mut self) {
        self.faults.sort_by(|a, b| a.place.cmp(&b.place));
        self.warnings.sort_by(|a, b| a.place.cmp(&b.place));
    }
}

/// A message whose quotations end with their first line: a quote that is not closed makes one value of
/// all that follows in the file, secrets too.
fn one_line(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut chars = message.chars();
    let mut cut = false;
    while let Some(char) = chars.next() {
        // As `{:?}` writes it, or as it is.
        let escaped = if char == '\\' { chars.next() } else { None };
        let breaks = matches!((char, escaped), ('\n' | '\r', _) | ('\\', Some('n' | 'r')));
        if breaks && !cut {
            out.push('\u{2026}');
        }
        cut = (cut || breaks) && (char, escaped) != ('"', None);
        if !cut {
            out.push(char);
            out.extend(escaped);
        }
    }
    out
}

fn starts_inner(rest: &str) -> bool {
    rest.starts_with(['.', '['])
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// A file's text, able to say in which line a byte stands.
pub(super) struct Source<'a> {
    /// The file as the user named it.
    pub(super) name: Arc<str>,
    /// Its whole text.
    pub(super) text: &'a str,
    /// Offsets at which lines begin.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    /// Finds the lines of `text`.
    pub(super) fn new(name: &str, text: &'a str) -> Source<'a> {
        let starts = memchr::memchr_iter(b'\n', text.as_bytes()).map(|end| end + 1);
        Source { name: name.into(), text, lines: std::iter::once(0).chain(starts).collect() }
    }

    /// The place of the byte at `offset`; an offset behind the end means the end.
    pub(super) fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|start| *start <= offset);
        let column = self.text[self.lines[line - 1]..offset].chars().count() + 1;
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { file: self.name.clone(), line: clamp(line), column: clamp(column) }
    }
}

/// A file as a whole.
pub(super) fn whole_file(name: &str) -> Place {
    Place { file: name.into(), line: 0, column: 0 }
}

/// Where each key that was set stands, so that what is found wrong later can still point at it.
#[derive(Clone, Debug, Default)]
pub(super) struct Spots {
    places: HashMap<String, Spot>,
    /// Files that were read for values.
    files: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
struct Spot {
    key: Place,
    value: Place,
}

impl Spots {
    /// Notes a key that was set.
    pub(super) fn set(&mut self, path: &str, key: Place, value: Place) {
        self.places.insert(path.to_owned(), Spot { key, value });
    }

    /// Takes in what another source sets, under paths that this one does not have.
    pub(super) fn extend(&mut self, other: &Spots) {
        self.places.extend(other.places.iter().map(|(path, spot)| (path.clone(), spot.clone())));
    }

    /// Notes a file that was read for a value.
    pub(super) fn read(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    /// Those files.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether the file sets this key.
    pub(super) fn has(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Where the value stands, or, if the key is not set, the nearest table around it.
    pub(super) fn value(&self, path: &str) -> Option<Place> {
        self.nearest(path).map(|spot| spot.value.clone())
    }

    /// Where the key stands, or, if it is not set, the nearest table around it.
    pub(super) fn key(&self, path: &str) -> Option<Place> {
        self.nearest(path).map(|spot| spot.key.clone())
    }

    fn nearest(&self, path: &str) -> Option<&Spot> {
        let mut path = path;
        loop {
            if let Some(spot) = self.places.get(path) {
                return Some(spot);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// The candidate nearest to a misspelt word, if it is near enough to be meant.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = fold(word);
    candidates
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().min(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Case, hyphens and underscores are what people mistake without a typing error.
fn fold(word: &str) -> Vec<u8> {
    word.bytes().filter(|b| !matches!(b, b'-' | b'_')).map(|b| b.to_ascii_lowercase()).collect()
}

/// Edits between two words, an exchange of neighbours counted as one (restricted
/// Damerau-Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    // Words this long are no keys, and the table below is quadratic.
    const LEN_MAX: usize = 64;
    if a.len() > LEN_MAX || b.len() > LEN_MAX {
        return usize::MAX;
    }
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (above[j] + 1).min(row[j - 1] + 1).min(above[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotations_end_with_their_line() {
        for (message, shown) in [
            (r#"found "x\ntoken = \"t\"\n", accepted: y"#, "found \"x\u{2026}\", accepted: y"),
            (r#"found "a\\nb" and "c\rd""#, r#"found "a\\nb" and "c…""#),
            ("found the scheme x\ny", "found the scheme x\u{2026}"),
            ("as it is: \"\\\"\"", "as it is: \"\\\"\""),
        ] {
            assert_eq!(one_line(message), shown);
        }
    }

    #[test]
    fn places_count_characters_not_bytes() {
        let source = Source::new("f", "a = 1\nä = \"ö\" x\n");
        let at = |needle: &str| source.place(source.text.find(needle).unwrap()).to_string();
        assert_eq!(at("a"), "f:1:1");
        assert_eq!(at("1"), "f:1:5");
        assert_eq!(at("ä"), "f:2:1");
        assert_eq!(at("x"), "f:2:9");
        assert_eq!(source.place(usize::MAX).to_string(), "f:3:1");
        assert_eq!(whole_file("f").to_string(), "f");
    }

    #[test]
    fn edits() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("prot", "port", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        }
    }

    #[test]
    fn nearest_key() {
        let keys = ["name", "separator", "max_sessions", "session_idle_seconds"];
        for (typo, expected) in [
            ("nmae", Some("name")),
            ("seperator", Some("separator")),
            ("maxSessions", Some("max_sessions")),
            ("session-idle-seconds", Some("session_idle_seconds")),
            ("auth", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(typo, keys.into_iter()), expected, "{typo}");
        }
    }

    #[test]
    fn a_fault_silences_only_its_own_key() {
        let mut report = Report::default();
        let place = whole_file("f");
        report.fault(place.clone(), "backends[1].url", "bad");
        report.fault(place, "backends[1].url", "a consequence");
        assert_eq!(report.faults.len(), 1);
        assert!(report.blames("backends[1].url"));
        assert!(report.blames("backends[1]"));
        assert!(!report.blames("backends[1].ur"));
        assert!(report.blames("backends[1].url.x"));
        assert!(!report.blames("backends[1].name"));
    }

    #[test]
    fn an_unset_key_points_to_the_table_around_it() {
        let mut spots = Spots::default();
        let place = |line| Place { file: "f".into(), line, column: 1 };
        spots.set("backends[0]", place(3), place(3));
        spots.set("backends[0].name", place(4), place(4));
        assert_eq!(spots.value("backends[0].tls.ca").unwrap().line, 3);
        assert_eq!(spots.value("backends[0].name").unwrap().line, 4);
        assert_eq!(spots.value("proxy.name"), None);
        assert!(!spots.has("backends[0].tls"));
    }
}
