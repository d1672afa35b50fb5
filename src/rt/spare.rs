//! Owns: byte buffers that a thread has done with, for its next messages.
//! Never: large ones, which go back to the system.
//! Next: `time`, the other thing that every wait needs.

use std::cell::RefCell;

/// Buffers that a thread keeps.
const KEPT: usize = 64;
/// What is made has this much room at least, so that it serves most messages when it is kept.
const LEAST: usize = 512;
/// A larger one is not kept.
const MOST: usize = 8 * 1024;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for at least `room` bytes.
pub fn buffer(room: usize) -> Vec<u8> {
    let kept = match room <= MOST {
        true => BUFFERS.try_with(|buffers| buffers.borrow_mut().pop()).ok().flatten(),
        false => None,
    };
    let mut buffer = kept.unwrap_or_default();
    buffer.reserve(room.max(LEAST));
    buffer
}

/// Takes back the storage of a message that is of no use any more.
pub fn give(mut buffer: Vec<u8>) {
    if (LEAST..=MOST).contains(&buffer.capacity()) {
        buffer.clear();
        // At the end of the thread it is dropped like any other.
        let _ = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            if buffers.len() < KEPT {
                buffers.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_bounded() {
        std::thread::spawn(|| {
            let mut one = buffer(100);
            one.extend_from_slice(b"said");
            let storage = one.as_ptr();
            give(one);
            let two = buffer(10);
            assert_eq!((two.as_ptr(), two.len()), (storage, 0));
            // Too large to be kept, and not taken from the small ones.
            give(two);
            let large = buffer(MOST + 1);
            assert_ne!(large.as_ptr(), storage);
            give(large);
            let three = buffer(10);
            assert_eq!(three.as_ptr(), storage);
            for _ in 0..2 * KEPT {
                give(Vec::with_capacity(LEAST));
                give(Vec::with_capacity(LEAST - 1));
            }
            assert_eq!(BUFFERS.with_borrow(Vec::len), KEPT);
        })
        .join()
        .unwrap();
    }
}
