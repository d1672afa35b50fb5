//! Owns: noticing that a file of the configuration has another content (`proxy.hot_reload`).
//! Never: what is done about it (`reload`); what is in the files.
//! Next: `admin`.
//!
//! Files are looked at a few times a second: a look is one stat(2) of each, which follows links. It
//! so notices a file that is written in place, one that is put in the place of another by a rename,
//! and a link that is turned to another folder, which is how Kubernetes changes what it mounts; and
//! it works on file systems that tell nobody of changes made elsewhere. What is noticed is left
//! alone until it has rested for a while, then read: only another content is a change.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Instant;

use super::config::read_bounded;
use crate::limits;

/// Files, and what they held when they were last used.
#[derive(Debug, Default)]
pub(super) struct Files {
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

impl Files {
    /// These files; what they hold now is what is used.
    pub(super) fn new(paths: Vec<PathBuf>) -> Files {
        let mut files = Files::default();
        files.replace(paths);
        files
    }

    /// These files from now on; of those that are known what was used stays so.
    pub(super) fn replace(&mut self, paths: Vec<PathBuf>) {
        let mut old = std::mem::take(&mut self.all);
        for path in paths {
            if self.all.iter().any(|file| file.path == path) {
                continue;
            }
            let known = old.iter().position(|file| file.path == path);
            self.all.push(match known {
                Some(at) => old.swap_remove(at),
                None => File { stamp: stamp(&path), content: content(&path), path },
            });
        }
    }

    /// One look, at `now`; true once after something has changed and come to rest.
    ///
    /// What never rests is a change after [`limits::WATCH_PATIENCE`] all the same. A file that has
    /// gone is none: one that is missed is to be put there again.
    pub(super) fn look(&mut self, now: Instant) -> bool {
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

fn stamp(path: &PathBuf) -> Option<Stamp> {
    let status = fs::metadata(path).ok()?;
    Some(Stamp {
        file: (status.dev(), status.ino()),
        size: status.size(),
        modified: (status.mtime(), status.mtime_nsec()),
        changed: (status.ctime(), status.ctime_nsec()),
    })
}

/// A number that stands for what is in a file.
fn content(path: &PathBuf) -> Option<u64> {
    // Whoever puts a pipe there must not hold this thread.
    let is_file = fs::metadata(path).is_ok_and(|status| status.is_file());
    let bytes = read_bounded(path, limits::CONFIG_BYTES_MAX).ok().filter(|_| is_file)?;
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

    impl Watch {
        fn of(paths: &[&Path]) -> Watch {
            let paths = paths.iter().map(|path| path.to_path_buf()).collect();
            Watch { files: Files::new(paths), now: Instant::now() }
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
        watch.files.replace(vec![file.clone(), file.clone()]);
        fs::remove_dir(&other).unwrap();
        fs::write(&other, "y").unwrap();
        assert!(!watch.settles());
        // And what was changed in the meantime is noticed.
        fs::write(&file, "c").unwrap();
        watch.files.replace(vec![file.clone(), other.clone()]);
        assert!(watch.settles());
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
