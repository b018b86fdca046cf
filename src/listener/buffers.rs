//! Buffers that the sessions of one worker share: a client that sends nothing holds none.

use std::cell::RefCell;

use bytes::BytesMut;

/// Fits most requests and replies, so that one read gets all of them.
pub(super) const FIRST: usize = 16 * 1024;
/// Larger ones are given back to the system.
const LARGEST_KEPT: usize = 256 * 1024;
const MOST_KEPT: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that goes back when it is dropped.
#[derive(Debug)]
pub(super) struct Buffer(pub(super) BytesMut);

impl Buffer {
    /// An empty buffer.
    pub(super) fn take() -> Self {
        let free = FREE.with(|free| free.borrow_mut().pop());
        Self(free.unwrap_or_else(|| BytesMut::with_capacity(FIRST)))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.0);
        buffer.clear();
        if (FIRST..=LARGEST_KEPT).contains(&buffer.capacity()) {
            // The thread may be ending; then the buffer is freed.
            _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < MOST_KEPT {
                    free.push(buffer);
                }
            });
        }
    }
}
