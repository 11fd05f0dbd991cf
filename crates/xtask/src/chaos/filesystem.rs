//! An image as a real file system: served to the kernel as a file through FUSE, attached as a loop device, formatted and
//! mounted.
//!
//! The FUSE side speaks the kernel's protocol directly (include/uapi/linux/fuse.h, version 7.31): one directory with one
//! file, `disk`, whose writes arrive here one by one and whose fsync(2) is the flush of the loop device above.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::image::Image;
use super::processes::{Failure, Tried, tool, wait_for};

/// The largest write that the kernel may send.
const WRITE_MAX: usize = 1 << 20;
const PAGES_MAX: u16 = (WRITE_MAX / 4096) as u16;

/// Requests served at once.
const THREADS: usize = 4;

const ROOT_INODE: u64 = 1;
const DISK_INODE: u64 = 2;
const DISK_NAME: &[u8] = b"disk\0";

/// How long the kernel may take to let go of a disk.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// Makes an empty file system on the device file. Nothing is discarded or left for later.
    fn format(self, file: &Path) -> Result<(), Failure> {
        match self {
            Kind::Ext4 => {
                tool(&format!("mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 {}", file.display()))
            }
            Kind::Xfs => tool(&format!("mkfs.xfs -q -f -K {}", file.display())),
        }
    }

    fn mount(self, file: &Path, point: &Path) -> Result<(), Failure> {
        let (name, options) = match self {
            Kind::Ext4 => ("ext4", "loop"),
            // Disks after a cut have the name of the one before.
            Kind::Xfs => ("xfs", "loop,nouuid"),
        };
        tool(&format!("mount -t {name} -o {options} {} {}", file.display(), point.display()))
    }
}

/// An empty file system.
pub fn format(kind: Kind, len_bytes: u64, folder: &Path) -> Result<Image, Failure> {
    let image = Arc::new(Image::new(len_bytes));
    let server = Server::start(&folder.join("format"), Arc::clone(&image))?;
    kind.format(&server.file())?;
    drop(server);
    Ok(Image::clone(&image))
}

/// A mounted image. Dropped, it is gone, even if somebody still uses it.
pub struct Mounted {
    point: PathBuf,
    // After the file system that stands on it.
    server: Server,
}

impl Mounted {
    pub fn mount(kind: Kind, image: Arc<Image>, point: &Path) -> Result<Mounted, Failure> {
        std::fs::create_dir_all(point).tried(|| format!("{}", point.display()))?;
        let server = Server::start(&point.with_extension("device"), image)?;
        let kernel = KernelLog::from_now_on();
        kind.mount(&server.file(), point)
            .map_err(|failure| Failure(format!("{failure}; the kernel said: {}", kernel.file_systems())))?;
        Ok(Mounted { point: point.to_owned(), server })
    }

    /// Waits until nothing is left of it, so that all that the kernel had in memory is in the image.
    pub fn unmount(self) -> Result<(), Failure> {
        let point = self.point.clone();
        let gone = || format!("the end of {}", point.display());
        wait_for(UNMOUNT_PATIENCE, gone, || Ok((unmount(&point, 0).is_ok()).then_some(())))?;
        let device = self.server.point.clone();
        let gone = || format!("the end of {}", device.display());
        wait_for(UNMOUNT_PATIENCE, gone, || Ok((unmount(&device, 0).is_ok()).then_some(())))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // It was unmounted already, or its users are on their way out.
        let _ = unmount(&self.point, libc::MNT_DETACH);
    }
}

/// What the kernel says (`/dev/kmsg`, as in the kernel's Documentation/ABI/testing/dev-kmsg).
struct KernelLog(io::Result<File>);

/// Messages that are told, what stands between them, and at their end when there are more.
const MESSAGES_MAX: usize = 20;
const BETWEEN: &str = " | ";
const MORE: &str = "and more";

/// The blocks, as numbers of sectors, whose checksums the kernel calls wrong in what it said of a mount that failed. `None`
/// if it calls metadata corrupt for another reason, or said more than is here.
pub fn blocks_of_bad_checksum(said: &str) -> Option<Vec<u64>> {
    let mut blocks = Vec::new();
    for message in said.split(BETWEEN) {
        if message.contains("Metadata CRC error detected") {
            let (_, number) = message.split_once(" block 0x")?;
            let digits: String = number.chars().take_while(char::is_ascii_hexdigit).collect();
            blocks.push(u64::from_str_radix(&digits, 16).ok()?);
        } else if message.contains("Metadata corruption") || message == MORE {
            return None;
        }
    }
    (!blocks.is_empty()).then_some(blocks)
}

impl KernelLog {
    fn from_now_on() -> KernelLog {
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        KernelLog(opened.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file)))
    }

    /// What it said of file systems on loop devices meanwhile. Others may be mounted at the same time.
    fn file_systems(self) -> String {
        let mut file = match self.0 {
            Ok(file) => file,
            Err(error) => return format!("/dev/kmsg cannot be read: {error}"),
        };
        let mut messages = Vec::new();
        let mut record = [0; 8192];
        // Each read gives one message; it fails when there is no more, or when some were overwritten.
        while let Ok(len @ 1..) = file.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..len]);
            let text = text.split_once(';').map_or("", |(_, text)| text).lines().next().unwrap_or_default();
            if text.contains("(loop") {
                messages.push(text.to_owned());
            }
        }
        if messages.len() > MESSAGES_MAX {
            messages.truncate(MESSAGES_MAX);
            messages.push(MORE.into());
        }
        messages.join(BETWEEN)
    }
}

/// A mounted directory with the image as its one file.
struct Server {
    point: PathBuf,
}

impl Server {
    fn start(point: &Path, image: Arc<Image>) -> Result<Server, Failure> {
        std::fs::create_dir_all(point).tried(|| format!("{}", point.display()))?;
        let device = File::options().read(true).write(true).open("/dev/fuse").tried(|| "/dev/fuse".into())?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options).expect("digits and words have no zero byte");
        let target = path_of(point)?;
        // SAFETY: all pointers are terminated strings that live through the call.
        let outcome = unsafe {
            libc::mount(
                c"chaos".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error()).tried(|| format!("mounting {}", point.display()));
        }
        let server = Server { point: point.to_owned() };
        let device = Arc::new(device);
        for _ in 0..THREADS {
            let (device, image) = (Arc::clone(&device), Arc::clone(&image));
            // They end when the kernel has let go of the mount.
            std::thread::spawn(move || serve(&device, &image));
        }
        Ok(server)
    }

    fn file(&self) -> PathBuf {
        self.point.join("disk")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = unmount(&self.point, libc::MNT_DETACH);
    }
}

fn unmount(point: &Path, flags: libc::c_int) -> io::Result<()> {
    let path = CString::new(point.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: a terminated string that lives through the call.
    match unsafe { libc::umount2(path.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn path_of(path: &Path) -> Result<CString, Failure> {
    CString::new(path.as_os_str().as_bytes()).tried(|| format!("{}", path.display()))
}

/// Operations of the protocol that are answered with more than an error.
mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
}

/// Length, operation, request, inode, and four that do not matter here.
const IN_HEADER_LEN: usize = 40;
const OUT_HEADER_LEN: usize = 16;

/// Answers requests until the mount is gone.
fn serve(device: &File, image: &Image) {
    let mut buffer = vec![0; WRITE_MAX + 4096];
    loop {
        let len = match (&*device).read(&mut buffer) {
            Ok(len) => len,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)) => continue,
            Err(_) => return,
        };
        let Some(request) = Request::read(&buffer[..len]) else { return };
        if matches!(request.operation, op::FORGET | op::BATCH_FORGET | op::INTERRUPT) {
            continue;
        }
        let (error, body) = match answer(&request, image) {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
        };
        let mut out = Vec::with_capacity(OUT_HEADER_LEN + body.len());
        out.extend(((OUT_HEADER_LEN + body.len()) as u32).to_ne_bytes());
        out.extend(error.to_ne_bytes());
        out.extend(request.unique.to_ne_bytes());
        out.extend(body);
        // A request that was given up meanwhile has nobody to answer.
        let _ = (&*device).write(&out);
    }
}

struct Request<'a> {
    operation: u32,
    unique: u64,
    inode: u64,
    body: &'a [u8],
}

impl Request<'_> {
    fn read(bytes: &[u8]) -> Option<Request<'_>> {
        let (header, body) = bytes.split_at_checked(IN_HEADER_LEN)?;
        Some(Request { operation: word(header, 4), unique: long(header, 8), inode: long(header, 16), body })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn answer(request: &Request<'_>, image: &Image) -> io::Result<Vec<u8>> {
    let body = request.body;
    match request.operation {
        op::INIT => Ok(init(word(body, 8))),
        op::LOOKUP if body == DISK_NAME => {
            // Inode, generation, and for how long both the name and the attributes may be kept.
            let mut out = longs(&[DISK_INODE, 1, FOREVER_S, FOREVER_S, 0]);
            out.extend(attributes(DISK_INODE, image.len_bytes));
            Ok(out)
        }
        op::LOOKUP => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        op::GETATTR | op::SETATTR => {
            let mut out = longs(&[FOREVER_S, 0]);
            out.extend(attributes(request.inode, image.len_bytes));
            Ok(out)
        }
        op::OPEN | op::OPENDIR => Ok(longs(&[0, 0])),
        op::READ => image.read(long(body, 8) as usize, word(body, 16) as usize),
        op::WRITE => {
            let (head, data) = body.split_at_checked(40).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
            let data = &data[..data.len().min(word(head, 16) as usize)];
            image.write(long(head, 8) as usize, data)?;
            Ok(longs(&[data.len() as u64]))
        }
        op::FSYNC => image.flush().map(|()| Vec::new()),
        // Sizes and counts of a file system in which nobody makes files.
        op::STATFS => Ok(longs(&[0; 10])),
        op::READDIR | op::RELEASE | op::RELEASEDIR | op::FLUSH | op::DESTROY => Ok(Vec::new()),
        _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
    }
}

const FOREVER_S: u64 = 1 << 30;

/// `fuse_init_out`: what this side can do.
fn init(readahead_max: u32) -> Vec<u8> {
    const ASYNC_READ: u32 = 1 << 0;
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    let mut out = Vec::new();
    for field in [7, 31, readahead_max, ASYNC_READ | BIG_WRITES | MAX_PAGES] {
        out.extend(u32::to_ne_bytes(field));
    }
    // Requests in the background, and from when on the kernel holds back.
    out.extend([64u16, 48].map(u16::to_ne_bytes).concat());
    out.extend((WRITE_MAX as u32).to_ne_bytes());
    out.extend(1u32.to_ne_bytes());
    out.extend([PAGES_MAX, 0].map(u16::to_ne_bytes).concat());
    out.resize(64, 0);
    out
}

/// `fuse_attr`.
fn attributes(inode: u64, len_bytes: u64) -> Vec<u8> {
    let (mode, len) =
        if inode == ROOT_INODE { (libc::S_IFDIR | 0o700, 4096) } else { (libc::S_IFREG | 0o600, len_bytes) };
    let mut out = longs(&[inode, len, len / 512, 0, 0, 0]);
    // Three parts of times; mode, links, owner, group, device, block size, flags.
    for field in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(u32::to_ne_bytes(field));
    }
    out
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel refuses answers of other lengths.
    #[test]
    fn answers_have_the_lengths_of_the_protocol() {
        let image = Image::new(1 << 20);
        let len = |operation, body: &[u8]| {
            answer(&Request { operation, unique: 1, inode: DISK_INODE, body }, &image).map(|out| out.len()).ok()
        };
        assert_eq!(len(op::INIT, &[0; 64]), Some(64));
        assert_eq!(len(op::LOOKUP, DISK_NAME), Some(128));
        assert_eq!(len(op::LOOKUP, b"other\0"), None);
        assert_eq!(len(op::GETATTR, &[]), Some(104));
        assert_eq!(len(op::OPEN, &[]), Some(16));
        assert_eq!(len(op::STATFS, &[]), Some(80));
        assert_eq!(len(999, &[]), None);
    }

    #[test]
    fn the_kernel_names_its_torn_blocks() {
        let bad = "XFS (loop0): Metadata CRC error detected at xfs_dir3_block_read_verify+0x71/0x100, xfs_dir3_block block 0x1c0 ";
        let said = |messages: &[&str]| blocks_of_bad_checksum(&messages.join(BETWEEN));
        let last = "XFS (loop0): log mount/recovery failed: error -74, block 0x7";
        assert_eq!(
            said(&["mount failed; the kernel said: XFS (loop0): Starting recovery", bad, last]),
            Some(vec![0x1c0])
        );
        assert_eq!(said(&[last]), None);
        assert_eq!(said(&[bad, last, MORE]), None);
        assert_eq!(
            said(&[bad, "XFS (loop0): Metadata corruption detected at xfs_agf_verify, xfs_agf block 0x1"]),
            None
        );
        assert_eq!(said(&["XFS (loop0): Metadata CRC error detected at xfs_agf_read_verify", last]), None);
    }

    #[test]
    fn what_is_written_is_read() {
        let image = Image::new(1 << 20);
        let head = |offset: u64, len: u32| {
            let mut body = longs(&[0, offset]);
            body.extend(len.to_ne_bytes());
            body.resize(40, 0);
            body
        };
        let ask = |operation, body: &[u8]| answer(&Request { operation, unique: 1, inode: 2, body }, &image);
        assert_eq!(ask(op::WRITE, &[head(5000, 3), vec![1, 2, 3]].concat()).unwrap(), longs(&[3]));
        assert_eq!(ask(op::READ, &head(4999, 5)).unwrap(), [0, 1, 2, 3, 0]);
        assert!(ask(op::WRITE, &[1, 2]).is_err());
    }
}
