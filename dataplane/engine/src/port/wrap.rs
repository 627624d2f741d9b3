//! What wrappers around a port have in common.
use super::{Link, OpenPort, Port};

/// Names and values of counters.
pub(super) type Counters = Vec<(&'static str, u64)>;

/// The link of a wrapped port: the inner one with further counters, and something to do at the end.
struct WrappedLink {
    inner: Box<dyn Link>,
    counters: Box<dyn Fn() -> Counters + Send>,
    on_close: Option<Box<dyn FnOnce() + Send>>,
}

/// Puts `queue` around each queue of a port, and adds `counters` to those of its link. `on_close` runs once after
/// the port was closed.
pub(super) fn wrap(
    mut port: OpenPort,
    queue: impl FnMut(Box<dyn Port>) -> Box<dyn Port>,
    counters: impl Fn() -> Counters + Send + 'static,
    on_close: impl FnOnce() + Send + 'static,
) -> OpenPort {
    port.queues = port.queues.into_iter().map(queue).collect();
    port.link = Box::new(WrappedLink {
        inner: port.link,
        counters: Box::new(counters),
        on_close: Some(Box::new(on_close)),
    });
    port
}

impl Link for WrappedLink {
    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    fn speed_mbps(&self) -> Option<u32> {
        self.inner.speed_mbps()
    }

    fn if_index(&self) -> Option<u32> {
        self.inner.if_index()
    }

    fn is_gone(&self) -> bool {
        self.inner.is_gone()
    }

    fn counters(&self) -> Counters {
        let mut all = self.inner.counters();
        all.extend((self.counters)());
        all
    }

    fn close(&mut self) {
        crate::nonblocking::might_block();
        self.inner.close();
        if let Some(on_close) = self.on_close.take() {
            on_close();
        }
    }
}

impl Drop for WrappedLink {
    fn drop(&mut self) {
        self.close();
    }
}
