//! Keeps a defect where it happened.
//!
//! A panic in noq's driver of a connection poisons the lock of that connection: every later call on
//! the connection panics as well, and so does dropping the last handle to it.

use std::{
    any::Any,
    future::Future,
    ops::{Deref, DerefMut},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    thread::panicking,
};

use pin_project_lite::pin_project;

/// The message of a panic.
pub(crate) type Panic = Box<dyn Any + Send>;

/// Keeps a panic inside the task it happened in.
pub(crate) fn guarded<F: Future>(future: F) -> Guarded<F> {
    Guarded { future }
}

pin_project! {
    /// See [`guarded`]. An `async fn` would hold its argument twice, in each task of a connection.
    pub(crate) struct Guarded<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = Result<F::Output, Panic>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.project().future.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

/// Uses a connection; `None` if that panics, which ends the connection and not its user.
#[inline]
pub(crate) fn contained<T>(using: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(using)).ok()
}

/// A handle to a connection that a defect may have left unusable: dropping it may panic, which must not
/// happen while another panic unwinds.
pub(crate) struct Kept<T>(Option<T>);

impl<T> Kept<T> {
    pub(crate) fn new(handle: T) -> Self {
        Self(Some(handle))
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let handle = self.0.take();
        if panicking() {
            std::mem::forget(handle);
        } else {
            contained(|| drop(handle));
        }
    }
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(HELD)
    }
}

const HELD: &str = "it is held until it is dropped";

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
        assert!(guarded(panicking).await.is_err());
    }
}
