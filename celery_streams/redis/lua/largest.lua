-- Keep the bytes of a log's largest entry in its stream's meta: what a read of so many entries can
-- bring at most. Only while every entry was counted; entries that are trimmed still count.
-- offset: where the entry begins. known: the field as it is, false if there is none.
local function count_largest(meta, offset, known, payload)
  if known and #payload > tonumber(known) or not known and offset == 0 then
    redis.call('HSET', meta, 'largest', #payload)
  end
end
