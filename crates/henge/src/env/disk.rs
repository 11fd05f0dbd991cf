//! A disk is a directory of a local file system. Reads, writes and flushes run on the disk's own threads, small direct
//! reads on a few of their own (`direct_reads.rs`); opening, listing and renaming, which only start-up and rare maintenance
//! do, run where they are called.
//!
//! A write and its flush are one hop to a thread. Nothing is copied unless direct I/O cannot use the memory.

use base::buffer::{AlignedBuf, BLOCK, align_up, is_aligned};
use base::buffer_pool::BufferPool;
use base::env::{Caching, Disk, DiskSpace, File, FileEntry, Flush, IoFuture, OpenMode};
use bytes::Bytes;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::direct_reads::{self, Read};
use super::workers::{Job, Workers, serve_jobs};

/// Threads per disk, beside those of small reads: as many operations as it is asked to do at once. Disks of many queues do most with
/// many.
const THREADS_MAX: usize = 32;

/// Reads that a disk is asked to do at once, of all kinds: fewer than its queues take, so that who asks never waits for room in
/// those, where a thread of the runtime would wait with it. Writes are bounded by who writes.
const READS_MAX: usize = 768;

/// The file whose lock is the directory's lock. Not listed: it is no file of the engine's.
const LOCK_NAME: &str = "lock";

/// Pieces in one system call (Linux: UIO_MAXIOV).
const IO_VECTORS_MAX: usize = 1024;

/// Misaligned memory goes to a direct file through bounce buffers of at most this size.
const BOUNCE_BYTES_MAX: usize = 1 << 20;

pub struct RealDisk {
    directory: PathBuf,
    workers: Arc<Workers<Job>>,
    /// Where the kernel offers what they need.
    readers: Option<Arc<Workers<Read>>>,
    reads: Arc<Semaphore>,
    buffers: Arc<BufferPool>,
}

impl RealDisk {
    /// Opens the directory, making it (readable by its owner only) when it is missing.
    pub fn open_or_create(directory: &Path) -> io::Result<RealDisk> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        RealDisk::open(directory)
    }

    /// Opens a directory that exists.
    pub fn open(directory: &Path) -> io::Result<RealDisk> {
        // Found out now rather than in the first operation.
        fs::read_dir(directory)?;
        let workers = Arc::new(Workers::start(THREADS_MAX, serve_jobs)?);
        let readers = match direct_reads::is_offered() {
            true => Some(Arc::new(Workers::start(direct_reads::THREADS_MAX, direct_reads::serve)?)),
            false => None,
        };
        let reads = Arc::new(Semaphore::new(READS_MAX));
        Ok(RealDisk { directory: directory.to_owned(), workers, readers, reads, buffers: Arc::default() })
    }

    /// Reads into buffers of this pool instead of one of its own.
    pub fn with_buffers(mut self, buffers: Arc<BufferPool>) -> RealDisk {
        self.buffers = buffers;
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        assert!(
            !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..",
            "names of a disk are flat, not {name:?}"
        );
        self.directory.join(name)
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str, mode: OpenMode, caching: Caching) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).mode(0o600).create_new(mode == OpenMode::CreateNew);
        let file = options.open(self.path(name))?;
        let is_direct = caching == Caching::Direct && try_direct_io(&file)?;
        let buffers = Arc::clone(&self.buffers);
        let inner = Arc::new(Inner { file, caching, buffers, flush_failed: AtomicBool::new(false) });
        let readers = self.readers.clone().filter(|_| is_direct);
        let (workers, reads) = (Arc::clone(&self.workers), Arc::clone(&self.reads));
        Ok(Arc::new(RealFile { inner, workers, readers, reads }))
    }

    fn list(&self) -> io::Result<Vec<FileEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                // Removed since the directory was read, by somebody else who uses the disk.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            if metadata.is_file() && name != LOCK_NAME {
                entries.push(FileEntry { name, size_bytes: metadata.len() });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn flush_directory(&self) -> io::Result<()> {
        fs::File::open(&self.directory)?.sync_all()
    }

    fn space(&self) -> io::Result<DiskSpace> {
        let path = CString::new(self.directory.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `path` is a terminated string and `stat` has room for what the call fills in.
        if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it filled `stat`.
        let stat = unsafe { stat.assume_init() };
        let unit_bytes = stat.f_frsize;
        Ok(DiskSpace { total_bytes: stat.f_blocks * unit_bytes, available_bytes: stat.f_bavail * unit_bytes })
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(self.directory.join(LOCK_NAME))?;
        // The lock belongs to this opening of the file: a second one, of this or another process, is refused.
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn describe(&self) -> String {
        self.directory.display().to_string()
    }
}

/// Asks for direct I/O on an open file, and says whether it has it; a file system without it keeps the file buffered. (Asked for in open(2), a
/// refusal would leave the new file behind.) And, where we may, that reads do not write down when they were: a file that is
/// written and read in turn has its inode written for reads otherwise.
fn try_direct_io(file: &fs::File) -> io::Result<bool> {
    let set = |more: libc::c_int| {
        // SAFETY: fcntl with these commands takes and returns plain integers; the descriptor is open.
        unsafe {
            let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
            if flags < 0 { flags } else { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | more) }
        }
    };
    set(libc::O_NOATIME);
    if set(libc::O_DIRECT) >= 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(error),
    }
}

#[derive(Clone)]
struct RealFile {
    inner: Arc<Inner>,
    workers: Arc<Workers<Job>>,
    /// Of a file that is read past the page cache.
    readers: Option<Arc<Workers<Read>>>,
    /// Places of reads.
    reads: Arc<Semaphore>,
}

pub struct Inner {
    file: fs::File,
    caching: Caching,
    pub buffers: Arc<BufferPool>,
    /// After a failed flush the kernel forgets what was not written, and the next flush would claim success.
    flush_failed: AtomicBool,
}

impl RealFile {
    /// Begins a read, which keeps its place until it is done.
    fn read_in(&self, place: OwnedSemaphorePermit, offset: u64, len: usize) -> IoFuture<Bytes> {
        match &self.readers {
            Some(readers) if len <= direct_reads::LEN_MAX => {
                let (done, outcome) = oneshot::channel();
                readers.submit(Read { file: Arc::clone(&self.inner), offset, len, done, place });
                Box::pin(answer(outcome))
            }
            _ => self.hop(move |inner| {
                let _place = place;
                inner.read(offset, len)
            }),
        }
    }

    /// Runs `operation` on one of the disk's threads. It runs also when the future is dropped.
    fn hop<T: Send + 'static>(&self, operation: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static) -> IoFuture<T> {
        let (done, outcome) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        self.workers.submit(Box::new(move || {
            // Nobody may be waiting any more.
            let _ = done.send(operation(&inner));
        }));
        Box::pin(answer(outcome))
    }
}

async fn answer<T>(outcome: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
    outcome.await.expect("a disk thread answers every operation, or the process has ended")
}

impl File for RealFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.inner.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, len: usize) -> IoFuture<Bytes> {
        self.inner.check_read(offset, len);
        match Arc::clone(&self.reads).try_acquire_owned() {
            Ok(place) => self.read_in(place, offset, len),
            Err(_) => {
                let file = self.clone();
                Box::pin(async move {
                    let place = Arc::clone(&file.reads).acquire_owned().await.expect("never closed");
                    file.read_in(place, offset, len).await
                })
            }
        }
    }

    fn read_now(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.inner.read(offset, len)
    }

    fn write_at(&self, offset: u64, pieces: Vec<Bytes>, flush: Flush) -> IoFuture<()> {
        if self.inner.caching == Caching::Direct {
            let len: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            assert_eq!((offset % BLOCK as u64, len % BLOCK as u64), (0, 0), "direct writes are whole blocks");
        }
        self.hop(move |inner| {
            inner.write(offset, pieces)?;
            if flush == Flush::Yes { inner.flush() } else { Ok(()) }
        })
    }

    fn flush(&self) -> IoFuture<()> {
        self.hop(Inner::flush)
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.inner.file.set_len(size_bytes)
    }

    fn reserve(&self, size_bytes: u64) -> IoFuture<()> {
        self.hop(move |inner| inner.reserve(size_bytes))
    }
}

impl Inner {
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn check_read(&self, offset: u64, len: usize) {
        if self.caching == Caching::Direct {
            assert_eq!((offset % BLOCK as u64, len % BLOCK), (0, 0), "direct reads are whole blocks");
        }
    }

    pub fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        self.check_read(offset, len);
        let mut buffer = self.buffers.take(len);
        buffer.set_len(len);
        let mut filled = 0;
        while filled < len {
            match self.file.read_at(&mut buffer.as_mut_slice()[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // Direct I/O stops within a block only at the end of the file, and cannot go on from there.
            if self.caching == Caching::Direct && !filled.is_multiple_of(BLOCK) {
                break;
            }
        }
        buffer.set_len(filled);
        Ok(buffer.freeze())
    }

    fn write(&self, offset: u64, pieces: Vec<Bytes>) -> io::Result<()> {
        let pieces = match self.caching {
            Caching::Direct => usable_by_direct_io(pieces),
            Caching::Buffered => pieces,
        };
        write_pieces(self.file.as_raw_fd(), offset, &pieces)
    }

    fn reserve(&self, size_bytes: u64) -> io::Result<()> {
        let len = libc::off_t::try_from(size_bytes).map_err(io::Error::other)?;
        // SAFETY: the call takes plain integers; the descriptor is open because its file is borrowed.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Err(error),
            // This file system cannot: nothing depends on it.
            _ => Ok(()),
        }
    }

    fn flush(&self) -> io::Result<()> {
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush of this file failed; what it holds is unknown"));
        }
        // fdatasync(2): also the size, not the times.
        let outcome = self.file.sync_data();
        if outcome.is_err() {
            self.flush_failed.store(true, Ordering::Release);
        }
        outcome
    }
}

/// Writes `pieces` one after the other from `offset` on, going on after interruptions and short writes.
fn write_pieces(fd: RawFd, mut offset: u64, pieces: &[Bytes]) -> io::Result<()> {
    let mut rest: Vec<&[u8]> = pieces.iter().map(Bytes::as_ref).filter(|piece| !piece.is_empty()).collect();
    let mut first = 0;
    while first < rest.len() {
        let vectors: Vec<libc::iovec> = rest[first..]
            .iter()
            .take(IO_VECTORS_MAX)
            .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() })
            .collect();
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: each vector describes bytes that `pieces` keeps alive, and the kernel only reads them; the
        // descriptor is open because its file is borrowed by the caller.
        let written = unsafe { libc::pwritev(fd, vectors.as_ptr(), vectors.len() as libc::c_int, at) };
        let Ok(mut written) = usize::try_from(written) else {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        };
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += written as u64;
        while first < rest.len() && written >= rest[first].len() {
            written -= rest[first].len();
            first += 1;
        }
        if written > 0 {
            rest[first] = &rest[first][written..];
        }
    }
    Ok(())
}

/// The same bytes in memory that direct I/O can use: aligned pieces as they are, the others copied together. The sum
/// of the lengths is a whole number of blocks.
fn usable_by_direct_io(pieces: Vec<Bytes>) -> Vec<Bytes> {
    if pieces.iter().all(|piece| is_aligned(piece)) {
        return pieces;
    }
    let mut out = Vec::with_capacity(pieces.len() + 1);
    let mut remaining: usize = pieces.iter().map(Bytes::len).sum();
    let mut bounce: Option<AlignedBuf> = None;
    for mut piece in pieces {
        while !piece.is_empty() {
            if bounce.as_ref().is_none_or(|buffer| buffer.len().is_multiple_of(BLOCK)) && is_aligned_prefix(&piece) {
                out.extend(bounce.take().map(AlignedBuf::freeze));
                let whole = piece.split_to(piece.len() - piece.len() % BLOCK);
                remaining -= whole.len();
                out.push(whole);
                continue;
            }
            let buffer = bounce.get_or_insert_with(|| {
                AlignedBuf::with_capacity(align_up(remaining as u64).min(BOUNCE_BYTES_MAX as u64) as usize)
            });
            let taken = buffer.fill_from(&piece);
            piece = piece.slice(taken..);
            remaining -= taken;
            if buffer.spare() == 0 {
                out.extend(bounce.take().map(AlignedBuf::freeze));
            }
        }
    }
    out.extend(bounce.map(AlignedBuf::freeze));
    assert!(out.iter().all(|piece| is_aligned(piece)), "whole blocks stay whole blocks");
    out
}

fn is_aligned_prefix(piece: &Bytes) -> bool {
    piece.len() >= BLOCK && (piece.as_ptr() as usize).is_multiple_of(BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::conformance;
    use proptest::prelude::*;

    #[tokio::test]
    async fn a_directory_keeps_the_contract() {
        let directory = crate::scratch::ScratchDir::new("disk-conformance");
        conformance::check(Arc::new(RealDisk::open_or_create(directory.path()).unwrap())).await;
    }

    #[test]
    fn the_simulated_disk_keeps_the_same_contract() {
        let sim = base::sim::Sim::new(1);
        let node = sim.node(crate::env::FIRST_NODE);
        let disk = node.disk("disk0");
        sim.block_on(node.run(conformance::check(disk))).expect("the node did not crash");
    }

    /// Who asks it waits for an answer, and not in place: on this runtime's one thread nothing else would be done any more.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_nobody_who_reads_from_it() {
        let directory = crate::scratch::ScratchDir::new("disk-hangs");
        let disk = RealDisk::open_or_create(directory.path()).unwrap();
        let file = disk.open("file", OpenMode::CreateNew, Caching::Buffered).unwrap();
        file.write_at(0, vec![Bytes::from_static(b"bytes")], Flush::No).await.unwrap();
        let hang = Arc::new(std::sync::Barrier::new(THREADS_MAX + 1));
        for _ in 0..THREADS_MAX {
            let hang = Arc::clone(&hang);
            disk.workers.submit(Box::new(move || _ = hang.wait()));
        }
        let reads: Vec<_> = (0..4 * READS_MAX).map(|_| tokio::spawn(file.read_at(0, 5))).collect();
        reads[READS_MAX + 1].abort();
        tokio::task::yield_now().await;
        hang.wait();
        for (number, read) in reads.into_iter().enumerate().filter(|(number, _)| *number != READS_MAX + 1) {
            assert_eq!(read.await.unwrap().unwrap(), "bytes", "{number}");
        }
    }

    #[test]
    fn the_lock_goes_with_its_guard_and_files_are_the_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = crate::scratch::ScratchDir::new("disk-lock");
        let one = RealDisk::open_or_create(&directory.path().join("new")).unwrap();
        let other = RealDisk::open(&directory.path().join("new")).unwrap();
        let guard = one.lock().unwrap();
        assert_eq!(other.lock().err().map(|e| e.kind()), Some(io::ErrorKind::WouldBlock));
        drop(guard);
        let _guard = other.lock().unwrap();
        one.open("a", OpenMode::CreateNew, Caching::Direct).unwrap();
        let mode_of = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode_of(directory.path().join("new/a")), 0o600);
        assert_eq!(mode_of(directory.path().join("new")), 0o700);
        assert!(RealDisk::open(&directory.path().join("missing")).is_err());
    }

    /// Several parts of a node share a directory. One listed it while another removed a file, and the node did not start.
    #[test]
    fn files_that_go_while_the_directory_is_listed_are_left_out() {
        let directory = crate::scratch::ScratchDir::new("disk-list");
        let disk = RealDisk::open_or_create(directory.path()).unwrap();
        disk.open("stays", OpenMode::CreateNew, Caching::Direct).unwrap();
        let names: Vec<String> = (0..200).map(|number| format!("goes-{number}")).collect();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20 {
                    names.iter().for_each(|name| drop(fs::write(directory.path().join(name), b"")));
                    names.iter().for_each(|name| disk.remove(name).unwrap());
                }
                is_over.store(true, std::sync::atomic::Ordering::Release);
            });
            while !is_over.load(std::sync::atomic::Ordering::Acquire) {
                let listed = disk.list().expect("a file that has gone is no error");
                assert!(listed.iter().any(|entry| entry.name == "stays"));
            }
        });
    }

    #[test]
    fn a_failed_flush_is_final() {
        // A pipe cannot be flushed: fdatasync(2) answers EINVAL.
        let (_reader, writer) = std::io::pipe().unwrap();
        let file = fs::File::from(std::os::fd::OwnedFd::from(writer));
        let inner =
            Inner { file, caching: Caching::Buffered, buffers: Arc::default(), flush_failed: AtomicBool::new(false) };
        let first = inner.flush().unwrap_err();
        assert_eq!(first.raw_os_error(), Some(libc::EINVAL));
        assert!(inner.flush().unwrap_err().to_string().contains("earlier flush"));
    }

    proptest! {
        #[test]
        fn bouncing_keeps_the_bytes(lens in proptest::collection::vec(0usize..20_000, 1..8), skew in 0usize..3) {
            let total: usize = lens.iter().sum();
            let source: Vec<u8> = (0..align_up(total as u64) as usize + skew).map(|i| (i % 251) as u8).collect();
            let mut aligned = AlignedBuf::with_capacity(source.len());
            aligned.fill_from(&source);
            let mut rest = aligned.freeze().slice(skew..);
            let expected = rest.clone();
            let mut pieces: Vec<Bytes> = lens.iter().map(|len| rest.split_to(*len)).collect();
            pieces.push(rest);
            let out = usable_by_direct_io(pieces);
            prop_assert!(out.iter().all(|piece| is_aligned(piece)));
            prop_assert_eq!(out.concat(), expected.to_vec());
        }
    }
}
