//! The network of a cluster of one: messages to oneself are handed over in memory, all others were never sent.

use base::env::{BoxFuture, Channel, Frame, Handler, MonoTime, Net, NetError};
use base::ids::NodeId;
use std::sync::{Arc, OnceLock};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::clock::SystemClock;
use base::env::Clock;

pub struct LocalNet {
    node: NodeId,
    runtime: Handle,
    clock: Arc<SystemClock>,
    handler: OnceLock<Arc<dyn Handler>>,
}

impl LocalNet {
    /// `node`: the only node that messages reach.
    pub fn new(node: NodeId, runtime: Handle, clock: Arc<SystemClock>) -> LocalNet {
        LocalNet { node, runtime, clock, handler: OnceLock::new() }
    }

    /// Hands a message over, in a task of its own: a caller that gives up does not stop the work, as in a network.
    fn deliver(&self, to: NodeId, channel: Channel, message: Frame) -> Option<oneshot::Receiver<Frame>> {
        if to != self.node {
            return None;
        }
        let handling = self.handler.get()?.handle(self.node, channel, message);
        let (answer, receiver) = oneshot::channel();
        self.runtime.spawn(super::or_abort("local message", async move {
            // Nobody may be waiting any more.
            let _ = answer.send(handling.await);
        }));
        Some(receiver)
    }
}

impl Net for LocalNet {
    fn call(
        &self,
        to: NodeId,
        channel: Channel,
        request: Frame,
        deadline: MonoTime,
    ) -> BoxFuture<Result<Frame, NetError>> {
        let Some(answer) = self.deliver(to, channel, request) else {
            return Box::pin(std::future::ready(Err(NetError::NotSent)));
        };
        let expiry = self.clock.sleep_until(deadline);
        Box::pin(async move {
            tokio::select! {
                biased;
                answer = answer => answer.map_err(|_| NetError::Broken),
                () = expiry => Err(NetError::DeadlineExceeded),
            }
        })
    }

    fn send(&self, to: NodeId, channel: Channel, message: Frame) {
        // A message that cannot be delivered is lost, as the contract allows.
        let _ = self.deliver(to, channel, message);
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        assert!(self.handler.set(handler).is_ok(), "a node's handler is set once, at start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::time::Duration;

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, _from: NodeId, _channel: Channel, request: Frame) -> BoxFuture<Frame> {
            Box::pin(async move {
                if request.head.is_empty() {
                    std::future::pending::<()>().await;
                }
                request
            })
        }
    }

    #[tokio::test]
    async fn reaches_oneself_and_nobody_else() {
        let clock = Arc::new(SystemClock::new());
        let net = LocalNet::new(NodeId(1), Handle::current(), Arc::clone(&clock));
        let frame = Frame { head: Bytes::from_static(b"hello"), bulk: vec![Bytes::from_static(b"bulk")] };
        let soon = clock.now() + Duration::from_secs(60);
        let early = net.call(NodeId(1), Channel::Control, frame.clone(), soon).await;
        assert_eq!(early, Err(NetError::NotSent), "before the handler is there");
        net.serve(Arc::new(Echo));
        assert_eq!(net.call(NodeId(1), Channel::Bulk, frame.clone(), soon).await, Ok(frame.clone()));
        assert_eq!(net.call(NodeId(2), Channel::Bulk, frame, soon).await, Err(NetError::NotSent));
        let passed = clock.now() + Duration::from_millis(1);
        let silent = net.call(NodeId(1), Channel::Control, Frame::default(), passed).await;
        assert_eq!(silent, Err(NetError::DeadlineExceeded));
    }
}
