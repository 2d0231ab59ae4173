"""The model: modules declare parameters, pure functions compute.

Key to the capital letters that end tensor names (`x_BTD` has shape [batch, queries, width]):

    B rows (requests)    T queries            S keys              L canvas positions
    D width              H query heads        K key/value heads   G queries per key/value head
    C head size          F hidden units       E experts           X chosen experts
    V vocabulary         I images             N patches           P numbers in a patch
    M soft tokens        W vision width       A tokens of all rows, flattened
    R rows of a block, or noisy tokens   J blocks of rows    U earlier predictions
    Q likeliest tokens of a position
    Y inputs and Z outputs of a matrix, or any list
"""
