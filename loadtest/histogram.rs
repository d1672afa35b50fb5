//! Owns: latencies, counted in buckets of at most 1.6 % width.
//! Never: a value lost; the range is that of u64 nanoseconds.

/// Buckets per octave.
const FINE_BITS: u32 = 6;
const FINE: u64 = 1 << FINE_BITS;
const BUCKETS: usize = ((u64::BITS - FINE_BITS + 1) as u64 * FINE) as usize;

/// Counts of nanoseconds.
#[derive(Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
    most: u64,
}

impl Histogram {
    pub(crate) fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0, most: 0 }
    }

    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
        self.most = self.most.max(nanoseconds);
    }

    /// Adds all that another one has counted.
    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.most = self.most.max(other.most);
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The largest value, in microseconds, exactly.
    pub(crate) fn most_micros(&self) -> f64 {
        self.most as f64 / 1000.0
    }

    /// The value that `share` of all values do not exceed, in microseconds; 0 without any value.
    pub(crate) fn micros(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return middle(bucket).min(self.most) as f64 / 1000.0;
            }
        }
        0.0
    }

    /// What another process needs to know of it: the largest value, and the buckets that are not
    /// empty with their counts.
    pub(crate) fn parts(&self) -> (u64, Vec<(usize, u64)>) {
        let counts = self.counts.iter().copied().enumerate().filter(|&(_, count)| count > 0);
        (self.most, counts.collect())
    }

    /// The reverse of [`Histogram::parts`]; buckets that do not exist are left out.
    pub(crate) fn of_parts((most, counts): &(u64, Vec<(usize, u64)>)) -> Histogram {
        let mut histogram = Histogram { most: *most, ..Histogram::new() };
        for &(bucket, count) in counts.iter().filter(|(bucket, _)| *bucket < BUCKETS) {
            histogram.counts[bucket] += count;
            histogram.total += count;
        }
        histogram
    }
}

/// Below `FINE` a bucket a value; then `FINE` buckets from each power of two to the next.
fn bucket(value: u64) -> usize {
    if value < FINE {
        return value as usize;
    }
    let octave = value.ilog2() - FINE_BITS;
    ((u64::from(octave) + 1) * FINE + (value >> octave) - FINE) as usize
}

fn middle(bucket: usize) -> u64 {
    let (octave, fine) = (bucket as u64 / FINE, bucket as u64 % FINE);
    match octave {
        0 => fine,
        _ => ((FINE + fine) << (octave - 1)) + ((1 << (octave - 1)) / 2),
    }
}
