//! Asynchronous functions that run in a transaction.

/// A function that returns a future which can be sent to another thread: `async |conn| …`, or a function with arguments
/// `Args`.
///
/// Implemented for asynchronous closures of one and of two arguments. Needed because a bound such as
/// `AsyncFnOnce(&mut AsyncPgConnection)` cannot say that the future is `Send`.
pub trait AsyncFunc<Args, R> {
    /// The future of a call.
    type Future: Future<Output = R> + Send;

    /// Calls the function.
    fn call(self, arguments: Args) -> Self::Future;
}

impl<F, A, R, Fut> AsyncFunc<(A,), R> for F
where
    F: AsyncFnOnce(A) -> R + FnOnce(A) -> Fut,
    Fut: Future<Output = R> + Send,
{
    type Future = Fut;

    fn call(self, (one,): (A,)) -> Fut {
        self(one)
    }
}

impl<F, A, B, R, Fut> AsyncFunc<(A, B), R> for F
where
    F: AsyncFnOnce(A, B) -> R + FnOnce(A, B) -> Fut,
    Fut: Future<Output = R> + Send,
{
    type Future = Fut;

    fn call(self, (one, other): (A, B)) -> Fut {
        self(one, other)
    }
}
