//! Owns: noticing that a file of the configuration has another content (`proxy.hot_reload`).
//! Never: what is done about it (`reload`); what is in the files.
//! Next: `added`, and another.
//!
//! Files are looked at a few times a second: a look is one stat(2) of each, which follows links. It
//! so notices a file that is written in place, one that is put in the place of another by a rename,
//! and a link that is turned to another folder, which is how Kubernetes changes what it mounts; and
//! it works on file systems that tell nobody of changes made elsewhere. What is noticed is left
//! alone until it has rested for a while, then read: only another content is a change.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Instant;

use super::config::read_bounded;
use crate::limits;

/// Files, and what they held when they were last used.
#[derive(Debug, Default)]
struct Files {
    all: Vec<File>,
    /// Since when something is otherwise, and since when that rests.
    unrest: Option<(Instant, Instant)>,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    stamp: Option<Stamp>,
    /// `None` = it could not be read.
    content: Option<u64>,
}

/// What a file's status says of its content; ctime cannot be set by anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Files, and numbers that stand for what they held; `None` = they could not be read.
pub(super) type Contents = Vec<(PathBuf, Option<u64>)>;

/// What these files hold now. To be taken before they are used: what comes between is a change.
pub(super) fn contents(paths: Vec<PathBuf>) -> Contents {
    paths.into_iter().map(|path| (path.clone(), content(&path))).collect()
}

/// The thread that watches; it ends with this.
#[derive(Debug, Default)]
pub(super) struct Watcher(Option<Sender<Contents>>);

impl Watcher {
    /// Watches nothing yet; `tell` hears of every change.
    ///
    /// # Errors
    /// There can be no more threads.
    pub(super) fn start(tell: impl Fn() + Send + 'static) -> io::Result<Watcher> {
        let (sender, orders) = channel::<Contents>();
        let watch = move || {
            let mut files = Files::default();
            loop {
                let order = match files.all.is_empty() {
                    true => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    false => orders.recv_timeout(limits::WATCH_TICK),
                };
                match order {
                    Ok(used) => files.replace(used, Instant::now()),
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if files.look(Instant::now()) {
                    tell();
                }
            }
        };
        std::thread::Builder::new().name("mcp-watch".to_owned()).spawn(watch)?;
        Ok(Watcher(Some(sender)))
    }

    /// Watches these files and no others; of each is known what was used of it.
    pub(super) fn watch(&self, used: Contents) {
        if let Some(orders) = &self.0 {
            // The thread ends only with this.
            let _ = orders.send(used);
        }
    }
}

impl Files {
    /// These files from now on.
    fn replace(&mut self, used: Contents, now: Instant) {
        self.all.clear();
        for (path, content) in used {
            if !self.all.iter().any(|file| file.path == path) {
                self.all.push(File { stamp: stamp(&path), content, path });
            }
        }
        // They may have changed since they were used.
        self.unrest = Some((now, now));
    }

    /// One look, at `now`; true once after something has changed and come to rest.
    ///
    /// What never rests is a change after [`limits::WATCH_PATIENCE`] all the same. A file that has
    /// gone is none: one that is missed is to be put there again.
    fn look(&mut self, now: Instant) -> bool {
        let mut moved = false;
        for file in &mut self.all {
            let stamp = stamp(&file.path);
            moved |= stamp != file.stamp;
            file.stamp = stamp;
        }
        let (since, rests) = match (moved, self.unrest) {
            (false, None) => return false,
            (true, None) => (now, now),
            (true, Some((since, _))) => (since, now),
            (false, Some(unrest)) => unrest,
        };
        let rested = now.saturating_duration_since(rests) >= limits::WATCH_REST;
        if !rested && now.saturating_duration_since(since) < limits::WATCH_PATIENCE {
            self.unrest = Some((since, rests));
            return false;
        }
        self.unrest = None;
        let mut changed = false;
        for file in &mut self.all {
            if let Some(new) = content(&file.path)
                && file.content != Some(new)
            {
                file.content = Some(new);
                changed = true;
            }
        }
        changed
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let status = fs::metadata(path).ok()?;
    Some(Stamp {
        file: (status.dev(), status.ino()),
        size: status.size(),
        modified: (status.mtime(), status.mtime_nsec()),
        changed: (status.ctime(), status.ctime_nsec()),
    })
}

/// A number that stands for what is in a file.
fn content(path: &Path) -> Option<u64> {
    // A pipe is not even opened: that would wait for whoever writes to it.
    fs::metadata(path).ok().filter(|status| status.is_file())?;
    let bytes = read_bounded(path, limits::CONFIG_BYTES_MAX).ok()?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    /// A clock that goes as the test wants, and how often a change was seen.
    struct Watch {
        files: Files,
        now: Instant,
    }

    /// A configuration may come through a pipe (`-c <(...)`), which cannot be read twice.
    #[test]
    fn a_pipe_holds_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let (done, wait) = channel();
        let looked = pipe.clone();
        std::thread::spawn(move || done.send(contents(vec![looked])));
        let seen = wait.recv_timeout(Duration::from_secs(60)).expect("it was not opened");
        assert_eq!(seen, [(pipe, None)]);
    }

    fn used(paths: &[&Path]) -> Contents {
        contents(paths.iter().map(|path| path.to_path_buf()).collect())
    }

    impl Watch {
        fn of(paths: &[&Path]) -> Watch {
            let (mut files, now) = (Files::default(), Instant::now());
            files.replace(used(paths), now);
            Watch { files, now }
        }

        fn look(&mut self, later: Duration) -> bool {
            self.now += later;
            self.files.look(self.now)
        }

        /// Whether a change is seen within a while, and then no other one.
        fn settles(&mut self) -> bool {
            let seen: Vec<bool> = (0..20).map(|_| self.look(limits::WATCH_TICK)).collect();
            let count = seen.iter().filter(|seen| **seen).count();
            assert!(count <= 1, "{seen:?}");
            count == 1
        }
    }

    #[test]
    fn writes_in_place_renames_and_turned_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let file = path("proxy.toml");
        fs::write(&file, "a").unwrap();
        let mut watch = Watch::of(&[&file]);
        assert!(!watch.settles());
        // In place, of the same length.
        fs::write(&file, "b").unwrap();
        assert!(watch.settles());
        // As editors save, twice in a row.
        for text in ["c", "d"] {
            fs::write(path("proxy.toml~"), text).unwrap();
            fs::rename(path("proxy.toml~"), &file).unwrap();
            assert!(watch.settles(), "{text}");
        }
        // The one that is read is the one that is seen.
        fs::write(&file, "e").unwrap();
        assert!(watch.settles());
        // As Kubernetes does: a link to a link to a folder, which is turned.
        for (n, text) in ["one", "two", "three"].iter().enumerate() {
            fs::create_dir(path(&format!("..v{n}"))).unwrap();
            fs::write(path(&format!("..v{n}/proxy.toml")), text).unwrap();
        }
        symlink("..v0", path("..data")).unwrap();
        symlink("..data/proxy.toml", path("mounted.toml")).unwrap();
        let mut watch = Watch::of(&[&path("mounted.toml")]);
        for n in [1, 2] {
            symlink(format!("..v{n}"), path("..tmp")).unwrap();
            fs::rename(path("..tmp"), path("..data")).unwrap();
            fs::remove_dir_all(path(&format!("..v{}", n - 1))).unwrap();
            assert!(watch.settles(), "{n}");
        }
    }

    #[test]
    fn the_same_content_is_no_change_and_neither_is_a_file_that_goes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&file, "a").unwrap();
        let mut watch = Watch::of(&[&file, &other]);
        fs::write(&file, "a").unwrap();
        assert!(!watch.settles());
        fs::remove_file(&file).unwrap();
        assert!(!watch.settles());
        fs::write(&file, "a").unwrap();
        assert!(!watch.settles(), "it is back as it was");
        fs::remove_file(&file).unwrap();
        assert!(!watch.settles());
        fs::write(&file, "b").unwrap();
        assert!(watch.settles());
        // One that was never there comes.
        fs::write(&other, "x").unwrap();
        assert!(watch.settles());
        // A folder in its place is nothing that can be read.
        fs::remove_file(&other).unwrap();
        fs::create_dir(&other).unwrap();
        assert!(!watch.settles());
        // What is no longer watched is not.
        watch.files.replace(used(&[&file, &file]), watch.now);
        fs::remove_dir(&other).unwrap();
        fs::write(&other, "y").unwrap();
        assert!(!watch.settles());
        // What changes between its use and the watch is noticed.
        let before = used(&[&file, &other]);
        fs::write(&file, "c").unwrap();
        watch.files.replace(before, watch.now);
        assert!(watch.settles());
    }

    #[test]
    fn the_thread_tells_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "a").unwrap();
        let (tell, told) = channel();
        let watcher = Watcher::start(move || tell.send(()).unwrap_or_default()).unwrap();
        watcher.watch(used(&[&file]));
        fs::write(&file, "b").unwrap();
        told.recv_timeout(Duration::from_secs(60)).unwrap();
        // Nothing is watched any more.
        watcher.watch(Vec::new());
        fs::write(&file, "c").unwrap();
        assert!(told.recv_timeout(limits::WATCH_REST * 2).is_err());
        drop(watcher);
        assert_eq!(told.recv(), Err(std::sync::mpsc::RecvError), "the thread has ended");
    }

    #[test]
    fn it_waits_for_rest_but_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "0").unwrap();
        let mut watch = Watch::of(&[&file]);
        let mut text = String::new();
        let mut passed = Duration::ZERO;
        // Every write is another length: the clock of the file system is coarse.
        loop {
            text.push('x');
            fs::write(&file, &text).unwrap();
            if watch.look(limits::WATCH_REST / 2) {
                break;
            }
            passed += limits::WATCH_REST / 2;
            assert!(passed <= limits::WATCH_PATIENCE, "never");
        }
        assert!(passed >= limits::WATCH_PATIENCE - limits::WATCH_REST, "{passed:?}");
        // What came after is seen too.
        fs::write(&file, "the end").unwrap();
        assert!(watch.settles());
    }
}
