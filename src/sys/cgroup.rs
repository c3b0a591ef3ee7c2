//! How much memory the control groups of this process leave it.
//!
//! A limit holds for a group and all below it, so the group's ancestors count as well, as far as they can be seen: in a
//! container the topmost one that is there is the container's own. Of what a group uses, file pages that have not been
//! used for long are the kernel's to take back, as where the host counts what is available.
//!
//! Both layouts are known, the unified one (v2) and that with a hierarchy for each controller (v1), where they are usually mounted.
//!
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use crate::units::ByteCount;

/// What the tightest of the groups leaves; `None` where there is no limit.
pub(crate) fn left() -> Option<ByteCount> {
    groups().iter().filter_map(Group::left).min()
}

/// The files that [`left`] reads.
#[cfg(feature = "sandbox")]
pub(crate) fn files() -> Vec<PathBuf> {
    let of = |group: Group| [group.names.limit, group.names.usage, "memory.stat"].map(|name| group.directory.join(name));
    groups().into_iter().flat_map(of).collect()
}

fn groups() -> Vec<Group> {
    read(Path::new("/proc/self/cgroup")).map_or_else(Vec::new, |own| groups_of(&own, Path::new("/sys/fs/cgroup")))
}

/// A group that this process is in, by itself or through one below.
#[derive(Debug)]
struct Group {
    directory: PathBuf,
    names: &'static Names,
}

/// What the two layouts call the same.
#[derive(Debug)]
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: file pages that have not been used for long, of the group and all below it.
    idle: &'static str,
}

/// The groups that the text of `/proc/self/cgroup` names.
fn groups_of(own: &str, mount: &Path) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (roots, names): (&[_], _) = match controllers {
            "" => (&["", "unified"], &V2),
            _ if controllers.split(',').any(|name| name == "memory") => (&["memory"], &V1),
            _ => continue,
        };
        let below = Path::new(path).strip_prefix("/").unwrap_or(Path::new(""));
        // Outside of what this process's namespace shows: only the root of that is there.
        let is_plain = below.components().all(|component| matches!(component, Component::Normal(_)));
        let below = if is_plain { below } else { Path::new("") };
        for root in roots {
            groups.extend(below.ancestors().take(MAX_DEPTH).map(|group| Group { directory: mount.join(root).join(group), names }));
        }
    }
    groups
}

impl Group {
    fn left(&self) -> Option<ByteCount> {
        // "max", where there is none.
        let number = |name| read(&self.directory.join(name))?.trim().parse::<u64>().ok();
        let (limit, usage) = (number(self.names.limit)?, number(self.names.usage)?);
        let stat = read(&self.directory.join("memory.stat")).unwrap_or_default();
        let idle = stat.lines().find_map(|line| line.strip_prefix(self.names.idle)?.strip_prefix(' ')?.parse().ok()).unwrap_or(0);
        Some(ByteCount(limit.saturating_sub(usage.saturating_sub(idle))))
    }
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

const V2: Names = Names { limit: "memory.max", usage: "memory.current", idle: "inactive_file" };
const V1: Names = Names { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", idle: "total_inactive_file" };
/// Groups above each other that are looked at.
const MAX_DEPTH: usize = 64;
const MAX_FILE_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left for a process of `own` groups, where the files say so.
    fn left_with(own: &str, files: &[(&str, &str)]) -> Option<u64> {
        let mount = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = mount.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        groups_of(own, mount.path()).iter().filter_map(Group::left).min().map(|left| left.0)
    }

    #[test]
    fn the_tightest_of_a_group_and_its_ancestors_counts() {
        let mut files = vec![
            ("vms/one/memory.max", "max\n"),
            ("vms/one/memory.current", "300\n"),
            ("vms/memory.max", "1000\n"),
            ("vms/memory.current", "600\n"),
            ("vms/memory.stat", "anon 1\ninactive_file_not 7\ninactive_file 50\nslab 1\n"),
        ];
        assert_eq!(left_with("0::/vms/one\n", &files), Some(450));
        files[0].1 = "350\n";
        assert_eq!(left_with("0::/vms/one\n", &files), Some(50));
        assert_eq!(left_with("0::/\n", &files), None);
        files[1].1 = "400\n";
        assert_eq!(left_with("0::/vms/one\n", &files), Some(0), "over its limit, as when that was lowered");
    }

    #[test]
    fn the_older_layout_counts_too() {
        let files = [
            ("memory/vms/memory.limit_in_bytes", "1000"),
            ("memory/vms/memory.usage_in_bytes", "900"),
            ("memory/vms/memory.stat", "inactive_file 1\ntotal_inactive_file 20\n"),
            ("cpu/vms/memory.limit_in_bytes", "1"),
            ("cpu/vms/memory.usage_in_bytes", "0"),
        ];
        assert_eq!(left_with("5:cpu,cpuacct:/vms\n4:memory:/vms\n0::/vms\n", &files), Some(120));
    }

    #[test]
    fn a_group_that_cannot_be_seen_is_one_that_the_root_stands_for() {
        let files = [("memory.max", "10"), ("memory.current", "4")];
        for own in ["0::/../../elsewhere", "0::/not/there", "0::/with:colon"] {
            assert_eq!(left_with(own, &files), Some(6), "{own}");
        }
        for senseless in ["", ":", "0:", "x\n\n0:memory", "0:cpu:/"] {
            assert_eq!(left_with(senseless, &files), None, "{senseless:?}");
        }
    }
}
