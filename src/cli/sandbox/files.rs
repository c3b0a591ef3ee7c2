//! Landlock: which files a receiver may still open once it has been set up, and how.
//!
//! Everything is forbidden but what the list here names. Landlock knows files by their inode, and those of `/proc` are made
//! anew when they were forgotten under memory pressure, so the ones that the rules are about are held open: what is open
//! is not forgotten.
//!
//! Landlock grew over the years, and the kernel enforces as much of it as it knows. What older ones lack (TCP, signals and
//! abstract sockets of other processes, ioctls of devices) are system calls that the other layer does not let pass, and
//! truncation takes a file that is open for writing. So the layer counts as there from its first version on.
//!
//! <https://docs.kernel.org/userspace-api/landlock.html>

use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags,
};

use super::Needs;
use crate::sys::{cgroup, huge};

/// What the rules are about.
pub(super) type Held = Vec<PathFd>;

/// Confines the calling thread and those that it starts; why not.
pub(super) fn confine(needs: &Needs<'_>) -> Result<Held, String> {
    let mut held = Held::new();
    let status = restrict(needs, &mut held).map_err(|error| format!("{error:#}"))?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Ok(held),
        (RulesetStatus::PartiallyEnforced, landlock) => {
            tracing::info!(?landlock, "this kernel knows a part of Landlock");
            Ok(held)
        }
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => Err("the kernel has it and was started without it (lsm=landlock,...)".to_owned()),
        (RulesetStatus::NotEnforced, _) => Err("the kernel was built without it (needs Linux 5.13, CONFIG_SECURITY_LANDLOCK)".to_owned()),
    }
}

fn restrict(needs: &Needs<'_>, held: &mut Held) -> anyhow::Result<landlock::RestrictionStatus> {
    let ruleset = Ruleset::default().handle_access(AccessFs::from_all(TESTED))?.handle_access(AccessNet::from_all(TESTED))?;
    let mut ruleset = ruleset.scope(Scope::from_all(TESTED))?.create()?;
    for (path, access) in openable(needs) {
        // What is not there now, or not for us, cannot be opened later either.
        let Some(file) = existing(&path)? else { continue };
        ruleset = ruleset.add_rule(PathBeneath::new(&file, access))?;
        held.push(file);
    }
    Ok(ruleset.restrict_self()?)
}

fn existing(path: &Path) -> Result<Option<PathFd>, PathFdError> {
    match PathFd::new(path) {
        Err(PathFdError::OpenCall { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

/// What is opened for each guest: the page map, how much memory there is, what becomes a huge page, faults, and vCPUs.
fn openable(needs: &Needs<'_>) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let mut openable = vec![
        ("/proc/self".into(), AccessFs::ReadFile.into()),
        ("/proc/meminfo".into(), AccessFs::ReadFile.into()),
        ("/sys/kernel/mm/transparent_hugepage".into(), AccessFs::ReadFile.into()),
        (huge::POOL.into(), AccessFs::ReadFile.into()),
        ("/dev/userfaultfd".into(), device),
    ];
    openable.extend(cgroup::files().into_iter().map(|file| (file, AccessFs::ReadFile.into())));
    if needs.kvm {
        openable.push(("/dev/kvm".into(), device));
    }
    openable.extend(needs.image.and_then(writable));
    if let Some(socket) = needs.socket {
        openable.push((directory_of(socket), AccessFs::RemoveFile.into()));
    }
    openable
}

/// An image is made anew each time, so it is its directory that is written to; a device or a pipe is what it is.
fn writable(image: &Path) -> Option<(PathBuf, BitFlags<AccessFs>)> {
    // A pipe that is reached through /proc has no path, and is not Landlock's concern.
    let image = image.canonicalize().ok()?;
    if image.is_file() {
        return Some((directory_of(&image), make_bitflags!(AccessFs::{MakeReg | WriteFile | Truncate})));
    }
    Some((image, AccessFs::WriteFile.into()))
}

fn directory_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(directory) if directory != Path::new("") => directory.to_owned(),
        _ => ".".into(),
    }
}

/// The newest version of Landlock that this was tried with.
const TESTED: ABI = ABI::V7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_made_in_its_directory_and_a_device_is_itself() {
        let directory = tempfile::tempdir().unwrap();
        let [image, link] = ["image", "link"].map(|name| directory.path().join(name));
        std::fs::write(&image, "").unwrap();
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let path = |file: &Path| writable(file).map(|(path, _)| path);
        assert_eq!(path(&image), Some(directory.path().canonicalize().unwrap()));
        assert_eq!(path(&link), Some("/dev/full".into()));
        assert_eq!(path(&directory.path().join("none")), None);
        assert_eq!(directory_of(Path::new("socket")), Path::new("."));
    }
}
