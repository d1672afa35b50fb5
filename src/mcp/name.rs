//! Owns: the way from the name that a client used to a backend and its own name.
//! Never: lists; which names exist (`catalog`).
//! Next: `catalog`, where names come from.

use crate::plan::{BackendId, Plan};

/// Compiled prefixes. No prefix begins another one (`control::compile` refuses that), so at most
/// one of them begins a name.
#[derive(Debug)]
pub struct Names {
    /// Prefix with separator, and who has it; sorted by prefix for binary search.
    prefixes: Vec<(String, BackendId)>,
    /// Backends that expose their own names, in the order of the file.
    pub bare: Vec<BackendId>,
}

/// Where a name leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// To this backend, under the name behind that many bytes.
    Prefixed(BackendId, usize),
    /// To whichever backend without prefix has it.
    Bare,
    /// Nowhere.
    Unknown,
}

impl Names {
    /// The names of a plan.
    pub fn new(plan: &Plan) -> Names {
        let mut prefixes = Vec::new();
        let mut bare = Vec::new();
        for backend in plan.backends.iter().filter(|backend| !backend.unlisted) {
            if backend.prefix.is_empty() {
                bare.push(backend.id);
            } else {
                prefixes.push((backend.prefix.clone(), backend.id));
            }
        }
        prefixes.sort();
        Names { prefixes, bare }
    }

    /// Resolves a tool's or prompt's name as the client wrote it.
    pub fn resolve(&self, name: &str) -> Target {
        self.resolve_bytes(name.as_bytes())
    }

    /// As [`Names::resolve`], of a name's bytes.
    pub fn resolve_bytes(&self, name: &[u8]) -> Target {
        // The only candidate is the greatest prefix that is not greater than the name: were there
        // another one between it and the name, it would begin with the candidate.
        let at = self.prefixes.partition_point(|(prefix, _)| prefix.as_bytes() <= name);
        if let Some((prefix, id)) = at.checked_sub(1).map(|at| &self.prefixes[at])
            && name.len() > prefix.len()
            && name.starts_with(prefix.as_bytes())
        {
            return Target::Prefixed(*id, prefix.len());
        }
        if self.bare.is_empty() { Target::Unknown } else { Target::Bare }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(prefixes: &[&str]) -> Names {
        let mut sorted: Vec<_> =
            prefixes.iter().enumerate().map(|(id, prefix)| (prefix.to_string(), id)).collect();
        sorted.sort();
        Names { prefixes: sorted, bare: Vec::new() }
    }

    #[test]
    fn the_prefix_decides() {
        let names = names(&["files__", "git__", "git-hub__", "a_b__"]);
        assert_eq!(names.resolve("files__read"), Target::Prefixed(0, 7));
        assert_eq!(names.resolve("git__log__all"), Target::Prefixed(1, 5));
        assert_eq!(names.resolve("git-hub__x"), Target::Prefixed(2, 9));
        assert_eq!(names.resolve("a_b___x"), Target::Prefixed(3, 5));
        for unknown in ["files__", "files", "", "x", "zzz__y", "gita__x", "Files__read"] {
            assert_eq!(names.resolve(unknown), Target::Unknown, "{unknown}");
        }
    }

    #[test]
    fn every_prefix_is_found_among_many() {
        let many: Vec<String> = (0..300).map(|n| format!("backend{n}__")).collect();
        let names = names(&many.iter().map(String::as_str).collect::<Vec<_>>());
        for (id, prefix) in many.iter().enumerate() {
            assert_eq!(names.resolve(&format!("{prefix}t")), Target::Prefixed(id, prefix.len()));
        }
    }
}
