//! Keeps a defect where it happened.
//!
//! A panic in noq's driver of a connection poisons the lock of that connection: whoever asks the
//! connection for anything panics as well, and so does dropping the last handle to it.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// Keeps a panic inside the task it happened in.
pub(crate) async fn guarded<T>(future: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// Uses a connection; `None` if that panics, which ends the connection and not its user.
#[inline]
pub(crate) fn contained<T>(using: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(using)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only() {
        assert_eq!(guarded(async { 7 }).await.unwrap(), 7);
        let panicking = async {
            tokio::task::yield_now().await;
            panic!("a defect")
        };
        assert!(guarded::<()>(panicking).await.is_err());
    }
}
