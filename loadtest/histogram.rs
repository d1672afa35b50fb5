//! Owns: latencies, counted in buckets of at most 1.6 % width.
//! Never: a value lost; the range is that of u64 nanoseconds.

/// Buckets per octave.
const FINE_BITS: u32 = 6;
const FINE: u64 = 1 << FINE_BITS;

/// Counts of nanoseconds.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Histogram {
        let octaves = u64::BITS - FINE_BITS + 1;
        Histogram { counts: vec![0; octaves as usize * FINE as usize], total: 0 }
    }

    pub(crate) fn add(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The value that `share` of all values do not exceed, in microseconds.
    pub(crate) fn micros(&self, share: f64) -> f64 {
        let rank = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut below = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return middle(bucket) as f64 / 1000.0;
            }
        }
        0.0
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
