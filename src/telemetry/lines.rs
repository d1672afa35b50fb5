//! Owns: log lines of exchanges: how they are written, and the thread that writes them.
//! Never: what stands in them (`exchange`); a line that waits for a disk.
//! Next: `metrics`.
//!
//! One JSON object a line. A worker formats a line and leaves it in its outlet; the writer looks
//! every [`LINES_TICK`](limits::LINES_TICK). What finds no room, on the way or on the disk, is
//! counted and gone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::metrics::{Lost, Metrics};
use crate::limits;
use crate::rt::outlet::Basin;

/// One line, with its line break.
pub struct Line {
    /// The access log's; else the audit log's.
    pub is_access: bool,
    /// The text.
    pub text: Vec<u8>,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard error.
    Stderr,
    /// The end of this file.
    File(PathBuf),
}

/// What the writer is told.
#[derive(Debug, Default)]
pub struct Orders {
    /// How often the files are to have been opened anew: they may have been moved away.
    pub reopen: AtomicU64,
    /// Write what there is, and end.
    pub end: AtomicBool,
}

/// An open place.
struct Target {
    place: Place,
    /// `None` = standard error.
    file: Option<File>,
    /// The last write left a piece of a line.
    torn: bool,
    /// Why the last write failed.
    fault: Option<String>,
}

/// The writer before its thread runs.
pub struct Writer {
    audit: Target,
    access: Target,
}

impl Writer {
    /// Opens both places.
    ///
    /// # Errors
    /// Those of the file system, with the file's name.
    pub fn open(audit: Place, access: Place) -> Result<Writer, String> {
        Ok(Writer { audit: Target::open(audit)?, access: Target::open(access)? })
    }

    /// Writes until the orders say to end, or no worker is left.
    pub fn run(mut self, mut basin: Basin<Line>, orders: &Arc<Orders>, metrics: &Metrics) {
        let (mut audit, mut access) = (Batch::default(), Batch::default());
        let mut opened = orders.reopen.load(Ordering::Acquire);
        let mut told: Option<String> = None;
        // Another place than before: what stood in the way there is no matter here.
        metrics.set_fault(Lost::Line, None);
        loop {
            // Looked at before: what was put in before the order is taken after it.
            let ends = orders.end.load(Ordering::Acquire) || basin.is_abandoned();
            let wanted = orders.reopen.load(Ordering::Acquire);
            if std::mem::replace(&mut opened, wanted) != wanted {
                self.audit.reopen();
                self.access.reopen();
            }
            let taken = basin.take(limits::LINES_BATCH, |line| {
                let batch = if line.is_access { &mut access } else { &mut audit };
                batch.text.extend_from_slice(&line.text);
                batch.lines += 1;
            });
            let lost = self.audit.write(&mut audit) + self.access.write(&mut access);
            if lost > 0 {
                metrics.lose(Lost::Line, lost);
            }
            let fault = self.audit.fault.as_ref().or(self.access.fault.as_ref());
            if fault != told.as_ref() {
                told = fault.cloned();
                metrics.set_fault(Lost::Line, told.clone());
            }
            if taken == 0 {
                if ends {
                    return;
                }
                std::thread::sleep(limits::LINES_TICK);
            }
        }
    }
}

#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    lines: u64,
}

impl Target {
    fn open(place: Place) -> Result<Target, String> {
        let file = match &place {
            Place::Stderr => None,
            Place::File(path) => {
                let opened = open(path);
                Some(opened.map_err(|error| format!("cannot open {}: {error}", path.display()))?)
            }
        };
        Ok(Target { place, file, torn: false, fault: None })
    }

    fn reopen(&mut self) {
        if let Place::File(path) = &self.place {
            match open(path) {
                Ok(file) => (self.file, self.torn) = (Some(file), false),
                Err(error) => {
                    tracing::warn!(%error, file = %path.display(), "the log cannot be reopened");
                }
            }
        }
    }

    /// Writes a batch, which is empty afterwards; how many of its lines are lost.
    fn write(&mut self, batch: &mut Batch) -> u64 {
        if batch.lines == 0 {
            return 0;
        }
        if self.torn {
            batch.text.insert(0, b'\n');
        }
        let (written, result) = match &mut self.file {
            Some(file) => write_some(file, &batch.text),
            None => write_some(&mut io::stderr().lock(), &batch.text),
        };
        let lost = match result {
            Ok(()) => 0,
            Err(_) => memchr::memchr_iter(b'\n', &batch.text[written..]).count() as u64,
        };
        self.torn = match written {
            0 => self.torn,
            _ => batch.text[written - 1] != b'\n',
        };
        let fault = result.err().map(|error| match &self.place {
            Place::Stderr => format!("standard error: {error}"),
            Place::File(path) => format!("{}: {error}", path.display()),
        });
        if fault.is_some() != self.fault.is_some() {
            match &fault {
                Some(error) => tracing::error!(%error, "log lines cannot be written: lost"),
                None => tracing::info!("log lines are written again"),
            }
        }
        self.fault = fault;
        batch.text.clear();
        batch.lines = 0;
        lost
    }
}

/// Appends; a pipe that nobody reads fails rather than waits.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

/// How many bytes were written, and what stood in the way of more.
fn write_some(out: &mut impl Write, text: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < text.len() {
        match out.write(&text[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// A JSON object in one line, in the making.
pub struct Object {
    out: Vec<u8>,
}

impl Object {
    /// Empty.
    #[expect(clippy::new_without_default, reason = "nothing is a default line")]
    pub fn new() -> Object {
        let mut out = Vec::with_capacity(512);
        out.push(b'{');
        Object { out }
    }

    fn key(&mut self, key: &str) {
        if self.out.len() > 1 {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A text, cut where it is too long; `None` = null.
    pub fn text(&mut self, key: &str, text: Option<&str>) -> &mut Object {
        self.key(key);
        match text {
            Some(text) => quote(cut(text), &mut self.out),
            None => self.out.extend_from_slice(b"null"),
        }
        self
    }

    /// A number; `None` = null.
    pub fn number(&mut self, key: &str, number: Option<i64>) -> &mut Object {
        self.key(key);
        match number {
            Some(number) => {
                self.out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            None => self.out.extend_from_slice(b"null"),
        }
        self
    }

    /// A time in milliseconds.
    pub fn millis(&mut self, key: &str, time: Duration) -> &mut Object {
        self.key(key);
        let _ = write!(self.out, "{:.3}", time.as_secs_f64() * 1e3);
        self
    }

    /// JSON as it is, but for line breaks, which only stand between its tokens; `None` = null.
    pub fn raw(&mut self, key: &str, json: Option<&[u8]>) -> &mut Object {
        self.key(key);
        let json = json.unwrap_or(b"null");
        let plain =
            json.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte });
        self.out.extend(plain);
        self
    }

    /// The line.
    pub fn finish(mut self) -> Vec<u8> {
        self.out.extend_from_slice(b"}\n");
        self.out
    }
}

/// As much of a text as a line carries.
pub fn cut(text: &str) -> &str {
    if text.len() <= limits::LINE_FIELD_BYTES_MAX {
        return text;
    }
    let mut end = limits::LINE_FIELD_BYTES_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn quote(text: &str, out: &mut Vec<u8>) {
    // Into memory, which does not fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line() {
        let mut object = Object::new();
        object.text("a", Some("x\n\"")).text("b", None).number("c", Some(-3)).number("d", None);
        object.millis("e", Duration::from_micros(1500)).raw("f", Some(b"{\n\"x\":\"a\\n\"}"));
        let text = String::from_utf8(object.finish()).unwrap();
        let expected = r#"{"a":"x\n\"","b":null,"c":-3,"d":null,"e":1.500,"f":{ "x":"a\n"}}"#;
        assert_eq!(text, format!("{expected}\n"));
        assert_eq!(cut(&"ä".repeat(300)).len(), limits::LINE_FIELD_BYTES_MAX);
        assert_eq!(cut(&format!("x{}", "ä".repeat(300))).len(), limits::LINE_FIELD_BYTES_MAX - 1);
    }

    #[test]
    fn a_full_disk_loses_lines_and_says_how_many() {
        let full = Place::File("/dev/full".into());
        let mut target = Target::open(full).unwrap();
        let mut batch = Batch { text: b"1\n2\n".to_vec(), lines: 2 };
        assert_eq!(target.write(&mut batch), 2);
        assert!(target.fault.is_some() && batch.text.is_empty());
    }

    #[test]
    fn a_file_grows_and_is_reopened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut target = Target::open(Place::File(path.clone())).unwrap();
        let put = |target: &mut Target, text: &str| {
            target.write(&mut Batch { text: text.as_bytes().to_vec(), lines: 1 })
        };
        assert_eq!(put(&mut target, "1\n"), 0);
        let moved = folder.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        put(&mut target, "2\n");
        target.reopen();
        put(&mut target, "3\n");
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "1\n2\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3\n");
        let missing = Place::File(folder.path().join("no/such/folder"));
        assert!(Target::open(missing).is_err());
    }

    #[test]
    fn a_piece_of_a_line_does_not_spoil_the_next() {
        struct Narrow(Vec<u8>, usize);
        impl Write for Narrow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let room = self.1.min(bytes.len());
                self.1 -= room;
                self.0.extend_from_slice(&bytes[..room]);
                if room == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Narrow(Vec::new(), 3);
        let (written, result) = write_some(&mut out, b"1\n2\n");
        assert_eq!(written, 3);
        assert!(result.is_err());
    }
}
