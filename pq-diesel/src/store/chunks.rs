//! Splits jobs into chunks for one statement each.

/// The maximum number of bytes and jobs of one statement. PostgreSQL cannot take an array of 1 GiB, so more jobs are
/// split into several statements of one transaction.
const MAX_BYTES: usize = 16 << 20;
const MAX_JOBS: usize = 1 << 17;

/// Splits jobs into chunks for one statement each, in their order.
pub(super) fn chunks<T>(jobs: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut chunks, mut start, mut sum) = (Vec::new(), 0, 0);
    for (position, job) in jobs.iter().enumerate() {
        let size = bytes(job);
        if position > start && (sum + size > MAX_BYTES || position - start == MAX_JOBS) {
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

/// Collects the next chunk of an iterator's jobs, for one statement.
pub(super) fn gather<T, E>(
    jobs: &mut dyn Iterator<Item = Result<T, E>>,
    bytes: impl Fn(&T) -> usize,
) -> Result<Vec<T>, E> {
    let (mut gathered, mut sum) = (Vec::new(), 0);
    while sum < MAX_BYTES
        && gathered.len() < MAX_JOBS
        && let Some(job) = jobs.next()
    {
        let job = job?;
        sum += bytes(&job);
        gathered.push(job);
    }
    Ok(gathered)
}
