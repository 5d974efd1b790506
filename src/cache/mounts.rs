//! The file systems that the user's files stand on, and whether their times tell that a file changed.
//!
//! Times tell on file systems of this machine whose kernel sets ctime at every change. They do not over a network, where
//! another machine's clock and caches decide, in FUSE, where a program does, and on what is mounted from an image that
//! cannot be written: images made by a script have fixed times, so that two of them, mounted at one path one after the
//! other, look alike.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use rustix::fs::{StatVfsMountFlags, major, minor, statfs, statvfs};

use super::locked;

/// Magic numbers (`statfs(2)`) of file systems whose kernel keeps ctime, each on devices of one machine.
const KEPT_BY_THE_KERNEL: [u64; 9] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // Btrfs
    0x2fc1_2fc1, // ZFS
    0xf2f5_2010, // F2FS
    0x3153_464a, // JFS
    0xca45_1a4e, // bcachefs
    0x0102_1994, // tmpfs
    0x794c_7630, // overlayfs, of these
];

/// A file system as the stamps of its files name it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FileSystem {
    /// `f_fsid` of `statfs(2)`: of most, half of their UUID.
    pub(super) id: u64,
    /// Why stamps tell nothing, if so.
    pub(super) cannot_tell: Option<String>,
}

/// By device, each looked at once a process.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    known: Mutex<HashMap<u64, Arc<FileSystem>>>,
    table: OnceLock<HashMap<String, Mount>>,
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq)]
struct Mount {
    kind: String,
    /// The file system, and not this mount of it alone.
    is_read_only: bool,
}

impl Mounts {
    /// The file system of a file.
    pub(super) fn file_system(&self, path: &Path, meta: &Metadata) -> Arc<FileSystem> {
        if let Some(known) = locked(&self.known).get(&meta.dev()) {
            return known.clone();
        }
        let found = Arc::new(self.look(path, meta.dev()));
        locked(&self.known).insert(meta.dev(), found.clone());
        found
    }

    fn look(&self, path: &Path, device: u64) -> FileSystem {
        let (Ok(found), Ok(flags)) = (statfs(path), statvfs(path)) else {
            return FileSystem { id: 0, cannot_tell: Some("their file system says nothing of itself".to_owned()) };
        };
        let table = self
            .table
            .get_or_init(|| fs::read_to_string("/proc/self/mountinfo").map(|text| mounts(&text)).unwrap_or_default());
        let mount = table.get(&format!("{}:{}", major(device), minor(device)));
        let magic = found.f_type as u64 & 0xffff_ffff;
        let kind = mount.map_or_else(|| format!("a file system of type {magic:#x}"), |mount| mount.kind.clone());
        // A mount that cannot be written may be of a file system that others can.
        let is_read_only = mount.map_or(flags.f_flag.contains(StatVfsMountFlags::RDONLY), |mount| mount.is_read_only);
        let cannot_tell = match KEPT_BY_THE_KERNEL.contains(&magic) {
            false => Some(format!("they are on {kind}, whose times need not move when a file changes")),
            true if is_read_only => Some(format!("they are on an image ({kind}) that cannot be written")),
            true => None,
        };
        FileSystem { id: flags.f_fsid, cannot_tell }
    }
}

/// File systems by `major:minor`.
fn mounts(text: &str) -> HashMap<String, Mount> {
    // 36 35 98:0 /root /mount rw,noatime shared:1 - ext3 /dev/root rw,errors=continue
    let mount = |line: &str| {
        let (of_mount, of_file_system) = line.split_once(" - ")?;
        let device = of_mount.split(' ').nth(2)?.to_owned();
        let mut parts = of_file_system.split(' ');
        let (kind, options) = (parts.next()?.to_owned(), parts.nth(1)?);
        Some((device, Mount { kind, is_read_only: options.split(',').any(|option| option == "ro") }))
    };
    text.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_be_written_is_told_from_a_mount_of_it() {
        let text = "36 35 98:0 / /data ro,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue\n\
                    40 35 7:0 / /mnt ro,relatime - squashfs /dev/loop0 ro,errors=continue\n\
                    41 35 0:50 / /share rw - nfs4 host:/share rw,vers=4.2\nno mount\n";
        let found = mounts(text);
        let of = |device: &str| (found[device].kind.as_str(), found[device].is_read_only);
        assert_eq!((of("98:0"), of("7:0"), of("0:50")), (("ext4", false), ("squashfs", true), ("nfs4", false)));
        assert_eq!(found.len(), 3);
    }

    #[test]
    fn times_are_believed_where_the_kernel_keeps_them_alone() {
        let mounts = Mounts::default();
        let of = |path: &str| mounts.file_system(Path::new(path), &fs::metadata(path).unwrap());
        let proc = of("/proc/self/mountinfo");
        let said = proc.cannot_tell.clone().unwrap();
        assert!(said.starts_with("they are on proc, whose times need not move"), "{said}");
        assert!(Arc::ptr_eq(&proc, &of("/proc/self/status")));
    }
}
