//! What waits to be sent over one connection.

use base::env::Frame;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::frame::Kind;

/// Above either, a caller is told that its message was not sent.
const MESSAGES_MAX: usize = 4096;
const BYTES_MAX: usize = 64 << 20;

/// Messages of about this many bytes are handed to the connection at once.
const BATCH_BYTES: usize = 1 << 20;

pub struct Message {
    pub kind: Kind,
    pub id: u64,
    pub frame: Frame,
    /// Of an answer: its request's place among those that are served at once.
    pub _held: Option<OwnedSemaphorePermit>,
}

impl Message {
    pub fn ping() -> Message {
        Message { kind: Kind::Ping, id: 0, frame: Frame::default(), _held: None }
    }

    fn bytes(&self) -> usize {
        self.frame.head.len() + self.frame.bulk.iter().map(Bytes::len).sum::<usize>()
    }
}

/// A queue with one reader, the connection.
#[derive(Default)]
pub struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Outbox {
    /// Queues `message`, or says that there is no room. An empty queue has room for any message.
    #[must_use]
    pub fn offer(&self, message: Message) -> bool {
        let mut queue = self.lock();
        let bytes = message.bytes();
        if queue.messages.len() >= MESSAGES_MAX || (queue.bytes > 0 && queue.bytes + bytes > BYTES_MAX) {
            return false;
        }
        queue.bytes += bytes;
        queue.messages.push_back(message);
        drop(queue);
        self.filled.notify_one();
        true
    }

    /// Queues an answer, whose number something else bounds.
    pub fn push(&self, message: Message) {
        let mut queue = self.lock();
        queue.bytes += message.bytes();
        queue.messages.push_back(message);
        drop(queue);
        self.filled.notify_one();
    }

    /// Takes back the request `id` if it is still here.
    pub fn withdraw(&self, id: u64) {
        let mut queue = self.lock();
        let found = queue.messages.iter().position(|message| message.kind == Kind::Request && message.id == id);
        if let Some(message) = found.and_then(|at| queue.messages.remove(at)) {
            queue.bytes -= message.bytes();
        }
    }

    /// Empties the queue.
    pub fn take_all(&self) -> VecDeque<Message> {
        let mut queue = self.lock();
        queue.bytes = 0;
        std::mem::take(&mut queue.messages)
    }

    /// Waits until there is something to send.
    pub async fn wait_filled(&self) {
        while self.lock().messages.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Waits for messages and takes some. When it is dropped before it is ready, nothing was taken.
    ///
    /// Whoever else is ready to run goes first: what these tasks have to say then travels in the same system call. A
    /// message that comes alone waits for one look at the sockets.
    pub async fn next_batch(&self) -> Vec<Message> {
        self.wait_filled().await;
        tokio::task::yield_now().await;
        let mut queue = self.lock();
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(message) = queue.messages.pop_front() else { break };
            bytes += message.bytes();
            queue.bytes -= message.bytes();
            batch.push(message);
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing can panic while the lock is held, so a poisoned lock still guards a whole queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, len: usize) -> Message {
        Message { kind: Kind::Request, id, frame: Frame { head: vec![0; len].into(), bulk: vec![] }, _held: None }
    }

    #[tokio::test]
    async fn is_bounded_in_messages_and_in_bytes() {
        let outbox = Outbox::default();
        assert!((0..MESSAGES_MAX as u64).all(|id| outbox.offer(request(id, 0))));
        assert!(!outbox.offer(request(0, 0)));
        outbox.withdraw(5);
        assert!(outbox.offer(request(5, BYTES_MAX)));
        assert!(!outbox.offer(request(0, 1)));
        let batch = outbox.next_batch().await;
        assert_eq!(batch.len(), MESSAGES_MAX);
        assert_eq!(batch.iter().filter(|message| message.id == 5).count(), 1);
        assert!(outbox.offer(request(1, BYTES_MAX)) && !outbox.offer(request(2, 1)));
        assert_eq!(outbox.take_all().len(), 1);
        assert!(outbox.offer(request(2, 1)));
    }
}
