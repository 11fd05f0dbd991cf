//! Small reads past the page cache: a few threads, each of which has many under way at once by the kernel's asynchronous
//! I/O (io_submit(2)). A thread for each read is woken twice, for the work and by the disk; here, while there is much to
//! read, a thread comes back with several answers and finds the next reads waiting.
//!
//! To begin a read may wait, for a file's lock or for a place in the queue of a disk that hangs: no thread of the runtime
//! does it.

use base::buffer::AlignedBuf;
use bytes::Bytes;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::disk::Inner;
use super::job_queue::{Bell, JobQueue};

/// Threads per disk: one that waits for the disk looks for more to do when an answer comes. With more of them each brings back
/// fewer answers.
pub const THREADS_MAX: usize = 2;
/// Reads that one thread has under way at once.
const READS_MAX: usize = 16;
/// Longest read, in bytes: for a longer one, waking a thread is a small part of the time that it takes.
pub const LEN_MAX: usize = 64 << 10;
/// How long a thread with reads under way waits for the disk before it looks for more: when all of them are slow.
const LOOK_NS: i64 = 1_000_000;

// <linux/aio_abi.h>
const IOCB_CMD_PREAD: u16 = 0;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct ControlBlock {
    data: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    rw_flags: i32,
    #[cfg(target_endian = "big")]
    key: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}
const _: () = assert!(size_of::<ControlBlock>() == 64, "as the kernel has it");

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    control_block: u64,
    result: i64,
    result2: i64,
}

pub struct Read {
    pub file: Arc<Inner>,
    pub offset: u64,
    pub len: usize,
    pub done: oneshot::Sender<io::Result<Bytes>>,
    /// Of the reads that a disk is asked to do at once.
    pub place: OwnedSemaphorePermit,
}

impl Read {
    fn answer(self, outcome: io::Result<Bytes>) {
        drop(self.place);
        // Nobody may be waiting any more.
        let _ = self.done.send(outcome);
    }

    /// One at a time: what the kernel did not begin, or did not do as a whole.
    fn do_alone(self) {
        let outcome = self.file.read(self.offset, self.len);
        self.answer(outcome);
    }
}

/// Whether the kernel offers it.
pub fn is_offered() -> bool {
    Context::new().is_ok()
}

/// Does what is queued until the queue is closed and empty.
pub fn serve(queue: &JobQueue<Read>) {
    let own = Bell::default();
    let Ok(mut context) = Context::new() else {
        while let Some(read) = queue.pop(&own) {
            read.do_alone();
        }
        return;
    };
    while let Some(read) = queue.pop(&own) {
        context.begin(read);
        while !context.is_idle() {
            while !context.is_full()
                && let Some(read) = queue.try_pop()
            {
                context.begin(read);
            }
            context.wait();
        }
    }
}

/// Reads under way, by slot. What the kernel writes into stays here until it says that it is done.
struct Context {
    id: libc::c_ulong,
    slots: [Option<(Read, AlignedBuf)>; READS_MAX],
    free: Vec<usize>,
}

impl Context {
    fn new() -> io::Result<Context> {
        let mut id: libc::c_ulong = 0;
        // SAFETY: the call takes an integer and fills in `id`.
        if unsafe { libc::syscall(libc::SYS_io_setup, READS_MAX, &raw mut id) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Context { id, slots: std::array::from_fn(|_| None), free: (0..READS_MAX).collect() })
    }

    fn is_idle(&self) -> bool {
        self.free.len() == READS_MAX
    }

    fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Begins a read; there is a free slot. Alone where the kernel cannot.
    fn begin(&mut self, read: Read) {
        let Ok(offset) = i64::try_from(read.offset) else { return read.do_alone() };
        let Some(slot) = self.free.pop() else { return read.do_alone() };
        let mut buffer = read.file.buffers.take(read.len);
        buffer.set_len(read.len);
        let file: RawFd = read.file.descriptor();
        let mut block = ControlBlock {
            data: slot as u64,
            opcode: IOCB_CMD_PREAD,
            file: file as u32,
            len: read.len as u64,
            buffer: buffer.as_mut_slice().as_mut_ptr() as u64,
            offset,
            ..ControlBlock::default()
        };
        self.slots[slot] = Some((read, buffer));
        let mut list = [&raw mut block];
        // SAFETY: one control block, which the kernel copies. It names memory and an open file that the slot keeps until the answer
        // has come.
        if unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1 as libc::c_long, list.as_mut_ptr()) } == 1 {
            return;
        }
        // The kernel will not answer.
        if let Some((read, _)) = self.take(slot) {
            read.do_alone();
        }
    }

    /// Waits a while for answers, and hands them out.
    fn wait(&mut self) {
        let mut events = [Event::default(); READS_MAX];
        let mut while_ = libc::timespec { tv_sec: 0, tv_nsec: LOOK_NS };
        let (least, most) = (1 as libc::c_long, READS_MAX as libc::c_long);
        // SAFETY: there is room for as many events as are asked for, and the call ends before this does.
        let got = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.id, least, most, events.as_mut_ptr(), &raw mut while_)
        };
        // Interrupted, it is asked again; nothing else may happen to a context that is there.
        let interrupted = got < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        assert!(got >= 0 || interrupted, "io_getevents: {}", io::Error::last_os_error());
        for event in &events[..usize::try_from(got).unwrap_or(0)] {
            let Some((read, mut buffer)) = self.take(event.data as usize) else { continue };
            match usize::try_from(event.result) {
                Ok(len) if len == read.len => {
                    buffer.set_len(len);
                    read.answer(Ok(buffer.freeze()));
                }
                // The end of the file.
                Ok(_) => read.do_alone(),
                Err(_) => match -event.result as i32 {
                    libc::EINTR | libc::EAGAIN | libc::EINVAL | libc::EOPNOTSUPP => read.do_alone(),
                    error => read.answer(Err(io::Error::from_raw_os_error(error))),
                },
            }
        }
    }

    fn take(&mut self, slot: usize) -> Option<(Read, AlignedBuf)> {
        let taken = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(taken)
    }
}

impl Drop for Context {
    /// Idle by then: a panic in between ends the process.
    fn drop(&mut self) {
        // SAFETY: the id is not used after.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::RealDisk;
    use crate::scratch::ScratchDir;
    use base::buffer::BLOCK;
    use base::env::{Caching, Disk, File, Flush, OpenMode, RandomExt};

    const BLOCKS: u64 = 64;

    /// A file whose blocks are filled with their numbers.
    async fn file_of_blocks(directory: &ScratchDir) -> Arc<dyn File> {
        let disk = RealDisk::open(directory.path()).unwrap();
        let file = disk.open("file", OpenMode::CreateNew, Caching::Direct).unwrap();
        let pieces = (0..BLOCKS).map(|number| Bytes::from(vec![number as u8; BLOCK])).collect();
        file.write_at(0, pieces, Flush::Yes).await.unwrap();
        file
    }

    /// More than the threads have under way at once, of all lengths that are short, and each gets what it asked for.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_are_all_answered_with_their_own_bytes() {
        let directory = ScratchDir::new("direct-reads");
        let file = file_of_blocks(&directory).await;
        let random = Arc::new(crate::env::system_random());
        let tasks: Vec<_> = (0..3 * (THREADS_MAX * READS_MAX))
            .map(|_| {
                let (file, random) = (Arc::clone(&file), Arc::clone(&random));
                tokio::spawn(async move {
                    for _ in 0..100 {
                        let (first, count) = (random.below(BLOCKS), 1 + random.below((LEN_MAX / BLOCK) as u64));
                        let read = file.read_at(first * BLOCK as u64, count as usize * BLOCK).await.unwrap();
                        // Cut at the end of the file.
                        assert_eq!(read.len() as u64, count.min(BLOCKS - first) * BLOCK as u64);
                        for (number, block) in (first..).zip(read.chunks(BLOCK)) {
                            assert_eq!(block, [number as u8; BLOCK]);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }

    #[tokio::test]
    async fn abandoned_reads_harm_nobody_and_failures_are_told() {
        let directory = ScratchDir::new("direct-reads-abandoned");
        let file = file_of_blocks(&directory).await;
        for _ in 0..1000 {
            drop(file.read_at(0, BLOCK));
        }
        assert_eq!(file.read_at(BLOCK as u64, BLOCK).await.unwrap(), [1; BLOCK].as_slice());
        for _ in 0..=THREADS_MAX * READS_MAX {
            assert!(file.read_at(u64::MAX - (BLOCK as u64 - 1), BLOCK).await.is_err(), "no place in a file");
        }
        assert!(file.read_at(BLOCKS * BLOCK as u64, BLOCK).await.unwrap().is_empty(), "the end of the file");
        // The file and its disk go with reads under way, which are answered all the same.
        let late = file.read_at(0, BLOCK);
        drop(file);
        assert_eq!(late.await.unwrap(), [0; BLOCK].as_slice());
    }
}
