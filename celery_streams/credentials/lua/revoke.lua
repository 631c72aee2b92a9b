#!lua
-- Withdraw every grant to write to one stream.
local meta = KEYS[1]
-- Returns how many there were, expired ones included.
local count = 0
for _, name in ipairs(redis.call('HKEYS', meta)) do
  if string.sub(name, 1, 2) == 'g/' then
    count = count + redis.call('HDEL', meta, name)
  end
end
return count
