//! How much goes with one statement.

/// The most bytes and jobs that go with one statement. More are split, inside one transaction: PostgreSQL takes no
/// array of a gigabyte.
const BYTES: usize = 16 << 20;
const JOBS: usize = 1 << 17;

/// All of them in their order, by as many as go with one statement.
pub(super) fn chunks<T>(jobs: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut chunks, mut start, mut sum) = (Vec::new(), 0, 0);
    for (position, job) in jobs.iter().enumerate() {
        let size = bytes(job);
        if position > start && (sum + size > BYTES || position - start == JOBS) {
            chunks.push(&jobs[start..position]);
            (start, sum) = (position, 0);
        }
        sum += size;
    }
    if start < jobs.len() {
        chunks.push(&jobs[start..]);
    }
    chunks
}

/// The next ones of those that come, about as many as go with one statement.
pub(super) fn gather<T, E>(
    jobs: &mut dyn Iterator<Item = Result<T, E>>,
    bytes: impl Fn(&T) -> usize,
) -> Result<Vec<T>, E> {
    let (mut gathered, mut sum) = (Vec::new(), 0);
    while sum < BYTES
        && gathered.len() < JOBS
        && let Some(job) = jobs.next()
    {
        let job = job?;
        sum += bytes(&job);
        gathered.push(job);
    }
    Ok(gathered)
}
