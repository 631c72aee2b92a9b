-- Tell everybody who reads a stream of a run that the run's state has changed: 's<epoch> <state>'
-- on the streams' live channels, and on the default one's, which a reader may await.
-- Readers of older versions take a message they do not know for a hint to read the log.
-- base: what the run's keys start with. keys: the set of its streams' keys, of the same hash tag.
local function tell(base, keys, epoch, state)
  local message = string.format('s%d %s', epoch, state)
  local awaited = true
  for _, key in ipairs(redis.call('SMEMBERS', keys)) do
    awaited = awaited and key ~= 'default'
    redis.call('SPUBLISH', base .. 'live/' .. key, message)
  end
  if awaited then
    redis.call('SPUBLISH', base .. 'live/default', message)
  end
end
