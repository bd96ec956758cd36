//! Memory the allocator keeps after it was freed, given back to the kernel.
use crate::sys;

/// Gives freed memory back, where the allocator keeps it. Takes milliseconds; for a moment at which nobody waits.
pub fn give_back_memory() {
    sys::give_back_memory();
}
