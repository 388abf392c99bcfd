//! A table of entries, whose names are never used again.

/// The name of an entry for its whole life: a slot, and the number of entries that have had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    slot: u32,
    generation: u32,
}

impl SlotId {
    /// The name of the `generation`th entry in `slot`.
    pub fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// As one number: the low 32 bits are the slot, the high 32 bits the generation.
    #[inline]
    pub fn bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The name from its [`bits`](Self::bits).
    #[inline]
    pub fn from_bits(bits: u64) -> Self {
        Self::new(bits as u32, (bits >> 32) as u32)
    }

    /// The position in the table.
    #[inline]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Entries by name, with as many slots as there were entries at once; the caller bounds its size.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    entry: Option<T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Entries in the table.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an entry.
    pub fn insert(&mut self, entry: T) -> SlotId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, entry: None });
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.generation = place.generation.wrapping_add(1);
        place.entry = Some(entry);
        SlotId { slot, generation: place.generation }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: SlotId) -> Option<T> {
        let place = self.slots.get_mut(id.slot()).filter(|s| s.generation == id.generation)?;
        let entry = place.entry.take()?;
        self.free.push(id.slot);
        Some(entry)
    }

    /// The entry of this name.
    #[inline]
    pub fn get(&self, id: SlotId) -> Option<&T> {
        let place = self.slots.get(id.slot())?;
        if place.generation == id.generation { place.entry.as_ref() } else { None }
    }

    /// The entry of this name, to be changed.
    #[inline]
    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut T> {
        let place = self.slots.get_mut(id.slot())?;
        if place.generation == id.generation { place.entry.as_mut() } else { None }
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (SlotId, &T)> {
        self.slots.iter().enumerate().filter_map(|(slot, place)| {
            Some((SlotId::new(slot as u32, place.generation), place.entry.as_ref()?))
        })
    }

    /// The entries of one of `parts` parts of the table, counted from 0; a part keeps its slots.
    pub fn part_mut(
        &mut self,
        part: usize,
        parts: usize,
    ) -> impl Iterator<Item = (SlotId, &mut T)> {
        self.slots.iter_mut().enumerate().skip(part).step_by(parts).filter_map(|(slot, place)| {
            Some((SlotId::new(slot as u32, place.generation), place.entry.as_mut()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_finds_its_own_entry_only() {
        let mut table = Slots::default();
        let (a, b) = (table.insert('a'), table.insert('b'));
        assert_eq!((table.get(a), table.get(b), table.len()), (Some(&'a'), Some(&'b'), 2));
        assert_eq!(table.remove(a), Some('a'));
        assert_eq!((table.get(a), table.len()), (None, 1));
        let c = table.insert('c');
        assert_eq!(
            (c.slot(), c == a),
            (a.slot(), false),
            "the slot is used again, its name is not"
        );
        assert_eq!((table.get(a), table.len()), (None, 2));
        assert_eq!(table.get_mut(a), None);
        assert_eq!(table.remove(a), None);
        *table.get_mut(c).unwrap() = 'd';
        assert_eq!(table.iter().collect::<Vec<_>>(), [(c, &'d'), (b, &'b')]);
        let nowhere = SlotId::new(2, 1);
        assert_eq!(table.get(nowhere), None);
        assert_eq!((table.remove(nowhere), table.len()), (None, 2));
        assert_eq!(SlotId::from_bits(c.bits()), c);
        assert_eq!(c.bits(), 2 << 32);
    }

    #[test]
    fn the_parts_are_the_whole() {
        let mut table = Slots::default();
        let ids: Vec<_> = (0..100).map(|n| table.insert(n)).collect();
        for id in ids.iter().step_by(3) {
            table.remove(*id);
        }
        assert_eq!((table.len(), table.is_empty()), (66, false));
        let mut seen: Vec<i32> = (0..7)
            .flat_map(|part| table.part_mut(part, 7).map(|(_, n)| *n).collect::<Vec<_>>())
            .collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq((0..100).filter(|n| n % 3 != 0)));
    }
}
